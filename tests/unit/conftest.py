"""Records of a step are checked for shapes and types whenever a test makes one; `test_shapes` checks objectives too."""

from jaxtyping import install_import_hook

install_import_hook(
    ["rlopt.core.batches", "rlopt.core.table", "rlopt.data.collate", "rlopt.data.microbatches", "rlopt.objectives.credit"],
    "beartype.beartype",
)
