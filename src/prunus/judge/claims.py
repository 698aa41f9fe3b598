"""Check what config.json tells loaders about the format of the weights."""

from __future__ import annotations

from ..base.errors import CheckpointError
from ..storage.origin import read_config
from ..storage.packing import grid_of
from .verification import Subject, Verification


def check(subject: Subject, found: Verification) -> None:
    """Check that packed weights are described, and that nothing is claimed of others.

    Raises:
        CheckpointError: the weights are packed on another grid than the report's.
    """
    report = subject.report
    assert report is not None
    config = read_config(subject.folder)
    inner = config.get("quantization_config")
    if "sparsity_config" in config or (isinstance(inner, dict) and inner.get("sparsity_config")):
        found.problems.append("config.json has a sparsity_config, which loaders would act on.")
    if not report.packed:
        if "quantization_config" in config:
            found.problems.append(
                "config.json has a quantization_config, which loaders would act on."
            )
        found.checks.append("config.json makes no claim about the weights' format")
        return
    grid = grid_of(config)
    if grid is None or grid != report.grid:
        raise CheckpointError(f"The report says {report.grid}, packed; config.json says {grid}.")
    found.checks.append(f"config.json describes the integers: {grid}")
