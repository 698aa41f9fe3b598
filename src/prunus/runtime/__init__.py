"""What a pruned checkpoint becomes when it runs."""

from .indexed import index_inputs
from .semi_structured import check_layout, to_semi_structured

__all__ = ["check_layout", "index_inputs", "to_semi_structured"]
