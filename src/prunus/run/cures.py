"""What to change where a finished checkpoint fails its own verification."""

from __future__ import annotations

from pathlib import Path

from ..judge.verify import Verification

CURES = (
    (("trust_remote_code", "trust-remote-code"), "Give --trust-remote-code (its code is run)"),
    (
        ("MemoryError", "allocate memory", "OutOfMemory", "out of memory", "SIGKILL"),
        "Free memory, about as much as the checkpoint takes",
    ),
    (
        ("No space left", "Disk quota", "os error 28"),
        "Make room in the temporary folder, or name another with TMPDIR",
    ),
    (("No module named", "ImportError", "PackageNotFound"), "Install the package that is named"),
)
"""What a reload says, and the cure."""


def explained(verification: Verification, kept: Path | None) -> str:
    """Put a failed verification into words: what is wrong, what is ``kept``, and how to go on.

    ``kept`` is the folder of the journal; None: the model is in memory.
    """
    problem = verification.problems[0]
    if verification.in_files:
        said = f"The checkpoint did not pass its own verification and was not kept: {problem}"
        if kept is None:
            return f"{said} The model in memory is pruned all the same."
        return (
            f"{said} The files themselves are wrong, so the same would come out again: please "
            f"report it. All pruned blocks are in {kept}; to start anew, remove that folder. With "
            "another version of prunus, --resume --allow-different tries again without pruning."
        )
    cure = next((cure for words, cure in CURES if any(word in problem for word in words)), None)
    said = f"The checkpoint was written, but did not pass the last check: {problem.rstrip('. ')}."
    cure = cure or "Mend what that names (memory, disk, packages, options)"
    if kept is None:
        return f"{said} {cure}, and write the pruned model, which is in memory, once more."
    return (
        f"{said} Nothing is lost: all pruned blocks are in {kept}. {cure}, and give the same "
        "command with --resume, which prunes nothing again."
    )
