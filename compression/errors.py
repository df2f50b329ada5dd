"""Everything this package refuses, as one tree.

CompressionError
├── RecipeError            the recipe is unknown, malformed or impossible
├── SourceError            the model cannot be used
│   ├── ModelNotFound      nothing under that name or path
│   ├── UnsupportedArchitecture
│   └── CorruptCheckpoint  truncated, inconsistent or unreadable files
├── BuildError             the build could not finish (disk full, no permission)
├── ArtifactError          an artifact is incomplete or was changed after it was built
├── CalibrationError       the calibration text cannot be used
├── SearchError            no recipe fits, or what is asked for makes no sense
├── EvaluationError        the text to compare on cannot be used
├── FidelityError          logits that no statistic can be made of
├── ReaderError            another engine that should read a text cannot be used
└── ReportError            a report cannot be written

Each message is one line that names the thing and the remedy.
"""


class CompressionError(Exception):
    """Base of all refusals; ``str(error)`` is one line for the user."""


class RecipeError(CompressionError):
    """The recipe is unknown, malformed or impossible."""


class SourceError(CompressionError):
    """The model cannot be used as a source."""


class ModelNotFound(SourceError):
    """Nothing exists under that name or path."""


class UnsupportedArchitecture(SourceError):
    """The checkpoint's architecture is not one this project knows."""


class CorruptCheckpoint(SourceError):
    """A checkpoint file is truncated, inconsistent or unreadable."""


class BuildError(CompressionError):
    """The build could not finish."""


class ArtifactError(CompressionError):
    """An artifact is incomplete or was changed after it was built."""


class CalibrationError(CompressionError):
    """The calibration text cannot be used."""


class SearchError(CompressionError):
    """No recipe fits what is asked for, or it makes no sense."""


class EvaluationError(CompressionError):
    """The evaluation text cannot be used."""


class FidelityError(CompressionError):
    """The logits of a model cannot be compared."""


class ReaderError(CompressionError):
    """Another engine that should read a text cannot be used."""


class ReportError(CompressionError):
    """A report cannot be written."""
