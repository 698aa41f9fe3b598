"""Quality: perplexity by the papers' protocol."""

from .perplexity import Evaluation, perplexity

__all__ = ["Evaluation", "perplexity"]
