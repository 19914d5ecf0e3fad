"""`python -m rlopt.report RUN [RUN ...] --out FILE.html`: reward, KL, entropy and length, on a page that needs nothing else.

Runs of one algorithm on one model are its seeds. The thin line is their mean at every step and the band reaches from the
smallest to the largest; the thick line over them is the mean of each 20 steps. What is measured only now and then (held-out
rows) is a line through its points. Preference runs have panels of their own. Beside the page stand the figure as PNG and SVG.
"""

import argparse
import sys

from rlopt.core.atomic_write import at_home, prepare_output, writing
from rlopt.core.errors import RloptError


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m rlopt.report", description="Draw the training curves of runs.")
    parser.add_argument(
        "runs", nargs="+", type=at_home, metavar="RUN", help="folder of a run; seeds of one algorithm become a band"
    )
    parser.add_argument("--out", type=at_home, required=True, metavar="FILE", help="the HTML page, .png and .svg beside it")
    arguments = parser.parse_args()
    from rlopt.diagnosis.curves import draw, load, write_page

    try:
        families = load(arguments.runs)
        page = arguments.out.with_suffix(".html")
        prepare_output("--out", page)
        with writing("--out", page):
            figures = draw(families, page)
            write_page(families, figures[0], page)
    except RloptError as error:
        sys.exit(f"error: {error}")
    for file in [*figures, page]:
        print(f"figure  {file}" if file in figures else f"page    {file}")


if __name__ == "__main__":
    main()
