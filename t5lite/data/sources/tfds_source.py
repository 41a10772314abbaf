"""Where records come from: data sets of TFDS, made ready at first use."""

import contextlib
import dataclasses
import functools
import importlib
import io
import logging
import pathlib
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from t5lite.core.errors import UserError, suggestion
from t5lite.core.files import local_folder
from t5lite.data.sources.records import Records, TfdsRecords
from t5lite.data.storage.building import DEFAULT_OPTIONS, BuildOptions, lock

log = logging.getLogger(__name__)

# TFDS registers its catalogue kind by kind up to one that needs a package which is not there;
# these come after it.
TEXT_KINDS = ("structured", "summarization", "text", "text_simplification", "translate")


@runtime_checkable
class Source(Protocol):
    """Gives the records of a split, which are made ready at first use."""

    def records(self, split: str, options: BuildOptions = DEFAULT_OPTIONS) -> Records: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsSource:
    """A data set by its TFDS name, prepared as array_record at first use.

    Args:
        name: as TFDS takes it, `"dataset"`, `"dataset/config"` or `"dataset/config:version"`.
            `"python_docs"` comes with t5lite and needs no network.
        data_dir: where data sets are kept; None for TFDS's default, `~/tensorflow_datasets` or
            the environment's TFDS_DATA_DIR.
    """

    name: str
    data_dir: str | None = None

    def records(self, split: str, options: BuildOptions = DEFAULT_OPTIONS) -> Records:
        """Returns the records of `split`, which may be a slice such as "train[:10%]"."""
        if not self._builder.is_prepared():
            try:
                self._prepare()
            except UserError:
                raise
            # Whatever the data set's own code raises.
            except Exception as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise UserError(
                    f"TfdsSource.name {self.name!r} cannot be prepared: {reason}"
                ) from error
        return TfdsRecords(self._builder, split)

    def _prepare(self) -> None:
        folder = pathlib.Path(self._builder.data_dir)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with lock(folder):
            # Another process may have prepared it meanwhile, which only a new builder sees.
            self.__dict__.pop("_builder")
            builder = self._builder
            if not builder.is_prepared():
                log.info("building data set %s in %s", builder.info.full_name, builder.data_dir)
                with quiet():
                    builder.download_and_prepare(file_format="array_record")

    @functools.cached_property
    def _builder(self) -> Any:
        import tensorflow_datasets as tfds

        # Registers the data set that comes with t5lite.
        import t5lite.data.sources.python_docs  # noqa: F401

        # Refused where it is an address.
        data_folder(self.data_dir)
        try:
            with quiet():
                for kind in TEXT_KINDS:
                    with contextlib.suppress(ImportError):
                        importlib.import_module(f"tensorflow_datasets.{kind}")
                return tfds.builder(self.name, data_dir=self.data_dir, file_format="array_record")
        except ImportError as error:
            missing = getattr(error.__cause__ or error, "name", None)
            raise UserError(
                f"TfdsSource.name {self.name!r} needs the package {missing!r}, which t5lite does "
                "not; where that is installed write its records to JSONL, for FileSource"
            ) from error
        except tfds.core.DatasetNotFoundError as error:
            known = suggestion(
                self.name.split("/")[0], tfds.core.registered.list_imported_builders()
            )
            remedy = known if known.startswith("did") else "see the catalogue of TFDS"
            raise UserError(f"TfdsSource.name {self.name!r} is no data set; {remedy}") from error
        # AssertionError: of another version.
        except (ValueError, AssertionError) as error:
            # What TFDS was called with stands in front of it.
            reason = " ".join(str(error).rpartition('}": ')[2].split())
            remedy = "; name another TfdsSource.data_dir" if "File format" in reason else ""
            raise UserError(
                f"TfdsSource.name {self.name!r} cannot be had: {reason}{remedy}"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_builder"}


def data_folder(data_dir: str | None) -> pathlib.Path:
    """Returns where data sets are kept.

    Raises:
        UserError: where that is no folder of this machine.
    """
    import tensorflow_datasets as tfds

    folder = data_dir or str(tfds.core.constants.DATA_DIR)
    return local_folder("data_dir of a source, or TFDS_DATA_DIR,", folder).absolute()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps from the terminal what TFDS prints: bars with carriage returns, hints of TensorFlow."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
