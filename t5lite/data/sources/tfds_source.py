"""TFDS data sets as a source: they are prepared when they are first used."""

import contextlib
import dataclasses
import functools
import importlib
import io
import logging
import pathlib
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from t5lite.core.errors import UserError, shown, suggestion
from t5lite.core.fields import field_name
from t5lite.core.files import local_folder
from t5lite.data.sources.records import Records, TfdsRecords, instructions_of
from t5lite.data.storage.building import DEFAULT_OPTIONS, BuildOptions, build_lock

log = logging.getLogger(__name__)

# TFDS registers its catalogue package by package and stops at one with a missing requirement; these
# packages come after it.
TEXT_KINDS = ("structured", "summarization", "text", "text_simplification", "translate")


@runtime_checkable
class Source(Protocol):
    """Gives the records of a split, and builds them when they are first used."""

    def records(self, split: str, options: BuildOptions = DEFAULT_OPTIONS) -> Records: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsSource:
    """A data set by its TFDS name, prepared as array_record files when it is first used.

    Args:
        name: as in TFDS: `"dataset"`, `"dataset/config"` or `"dataset/config:version"`.
            `"python_docs"` is part of t5lite and needs no network.
        data_dir: the folder of data sets; None for TFDS's default, `~/tensorflow_datasets` or
            the environment variable TFDS_DATA_DIR.
    """

    name: str
    data_dir: str | None = None

    def records(self, split: str, options: BuildOptions = DEFAULT_OPTIONS) -> Records:
        """Returns the records of a split, or of a slice such as "train[:10%]".

        Raises:
            UserError: if the data set or the split is unknown, or cannot be prepared.
        """
        # A builder knows of a data set only what was there when it was created.
        if not self._builder.info.initialized:
            try:
                self._prepare()
            except UserError:
                raise
            # The code of the data set may raise anything.
            except Exception as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise UserError(f"{self._owner} cannot be prepared: {reason}") from error
        builder = self._builder
        name = builder.info.full_name
        try:
            instructions = instructions_of(name, builder.info.splits, split)
        except UserError:
            raise
        except Exception as error:
            raise self._damaged(error) from error
        return TfdsRecords(f"{name} {split}", builder.info.features, instructions)

    @property
    def _owner(self) -> str:
        return f"{field_name(self, 'name')} {self.name!r}"

    def _prepare(self) -> None:
        folder = pathlib.Path(self._builder.data_dir)
        with build_lock(folder):
            # Only a new builder sees what another process has prepared meanwhile.
            self.__dict__.pop("_builder")
            builder = self._builder
            if not builder.info.initialized:
                log.info("building data set %s in %s", builder.info.full_name, builder.data_dir)
                with quiet():
                    builder.download_and_prepare(file_format="array_record")

    @functools.cached_property
    def _builder(self) -> Any:
        import tensorflow_datasets as tfds

        # Registers the data set of t5lite.
        import t5lite.data.sources.python_docs  # noqa: F401

        # Rejects an address.
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
                f"{self._owner} needs the package {missing!r}, which t5lite does not use; write "
                "its records to JSONL where that package is installed, and use FileSource"
            ) from error
        except tfds.core.DatasetNotFoundError as error:
            known = suggestion(
                self.name.split("/")[0], tfds.core.registered.list_imported_builders()
            )
            remedy = known if known.startswith("did") else "see the catalogue of TFDS"
            raise UserError(f"{self._owner} is not a data set; {remedy}") from error
        # AssertionError: for another version.
        except (ValueError, AssertionError) as error:
            # TFDS puts its arguments before the reason.
            reason = " ".join(str(error).rpartition('}": ')[2].split())
            remedy = "; name another TfdsSource.data_dir" if "File format" in reason else ""
            raise UserError(f"{self._owner} cannot be loaded: {reason}{remedy}") from error
        except Exception as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> UserError:
        """Returns the error for damaged metadata, for which TFDS may raise anything."""
        return UserError(
            f"{self._owner} cannot be loaded: {type(error).__name__}: {shown(str(error))}; delete "
            "its folder in TfdsSource.data_dir to prepare it again"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_builder"}


def data_folder(data_dir: str | None) -> pathlib.Path:
    """Returns the folder of data sets.

    Raises:
        UserError: if it is not a local folder.
    """
    import tensorflow_datasets as tfds

    folder = data_dir or str(tfds.core.constants.DATA_DIR)
    return local_folder("data_dir of a source, or TFDS_DATA_DIR,", folder).absolute()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides what TFDS prints: progress bars, and hints about TensorFlow."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
