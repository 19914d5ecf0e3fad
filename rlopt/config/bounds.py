"""Bounds of single values, as types. A `Field` bounds a value by itself; its description is what an error says."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator


def _whole_or_share(gpus: float) -> float:
    if not (0 <= gpus < 1 or (gpus >= 1 and gpus == int(gpus))):
        raise ValueError
    return gpus


def _auto_or_count(threads: Any) -> Any:
    if threads == "auto" or (type(threads) is int and threads >= 1):
        return threads
    raise ValueError


AutoOrCount = Annotated[Literal["auto"] | int, PlainValidator(_auto_or_count), Field(description="must be auto or at least 1")]
Positive = Annotated[float, Field(gt=0, description="must be above 0")]
OffOrMore = Annotated[int, Field(ge=0, description="must be 0 (off) or more")]
AtLeastOne = Annotated[int, Field(ge=1, description="must be at least 1")]
Seconds = Annotated[float, Field(gt=0, description="must be above 0 seconds")]
Share = Annotated[float, Field(gt=0, le=1, description="must be above 0 and at most 1")]
Gpus = Annotated[
    float,
    AfterValidator(_whole_or_share),
    Field(description="must be 0, a share of one GPU, or a whole number of them"),
]
Seed = Annotated[int, Field(ge=0, lt=2**32, description="must be 0 to 4294967295")]
