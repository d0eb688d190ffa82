"""What can go wrong. Messages name the thing, what was expected and what was found."""


class LladaError(Exception):
    """Base of every error of this package that is not a plain argument error."""


class ModelFormatError(LladaError, ValueError):
    """A checkpoint folder is malformed, incomplete or contradicts itself."""


class UnsupportedModelError(LladaError):
    """A well-formed checkpoint asks for something that this package does not have."""


class ModelMemoryError(LladaError, MemoryError):
    """The model does not fit into memory."""


class MissingPackageError(LladaError, ImportError):
    """Something needs a package that is not installed. The message names the extra that brings it."""


class HubError(LladaError):
    """A repository of the Hugging Face hub is missing, gated or out of reach, or lacks a revision or a file."""


class EngineError(LladaError, RuntimeError):
    """A backend failed in the middle of its work. The message says in what, with which shapes."""


class NonFiniteLogitsError(LladaError, ArithmeticError):
    """A row of logits has a NaN, or no finite value at all: the weights are damaged."""


class GenerationCancelled(LladaError):
    """The model was closed while it was generating, or the request was given up."""
