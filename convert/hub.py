"""Finding a source: a path on this machine, a bundled model, or a repository that is fetched from the Hub."""

import os
import re
from pathlib import Path

from vitpose_jax.bundled import bundled_model, bundled_models
from vitpose_jax.storage.text import printable

from .torch_files import SUFFIXES, find_weights, weight_paths

CONFIG_PATTERNS = ("config.json", "preprocessor_config.json")
SAFETENSORS_PATTERNS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
PICKLE_PATTERNS = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin")

_COMMIT = r"[0-9a-f]{40}"


def resolve_source(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    weights: bool = True,
) -> Path:
    """The path of a source. A model of the Hub is fetched first, if it is not in the cache.

    Args:
        source: an existing path, the name of a bundled model, or a Hub id "user/name".
        revision: branch, tag or commit on the Hub.
        cache_dir: cache folder of huggingface_hub; None for its default.
        token: for private repositories; None for the one that huggingface_hub has stored.
        local_files_only: do not use the network.
        weights: False fetches only the configuration from the Hub.

    Raises:
        ValueError: if there is no such path, and the Hub does not have the model or cannot be reached.
    """
    path = _expanded(source)
    if _exists(path):
        if revision is not None:
            raise ValueError(f"{source}: a revision ({revision!r}) needs a Hub id, and this is a path")
        return path
    bundled = bundled_model(str(source))
    if bundled is not None:
        if revision is not None:
            raise ValueError(f"{source}: a revision ({revision!r}) needs a Hub id, and this model is bundled")
        return bundled
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) or path.suffix in SUFFIXES:
        raise ValueError(
            f"{printable(source)}: no such file or folder, and not a Hub id ('user/name') or a bundled model "
            f"({', '.join(bundled_models())})"
        )
    options = {"revision": revision, "cache_dir": cache_dir, "token": token}
    # A commit never changes: if the cache holds all of it, the network is not needed.
    if revision is not None and re.fullmatch(_COMMIT, revision) and not local_files_only:
        try:
            folder = _fetch(str(source), CONFIG_PATTERNS, **options, local_files_only=True)
            weight_paths(find_weights(folder))
            return folder
        except ValueError:
            pass
    options["local_files_only"] = local_files_only
    if not weights:
        return _fetch(str(source), CONFIG_PATTERNS, **options)
    folder = _fetch(str(source), (*CONFIG_PATTERNS, *SAFETENSORS_PATTERNS), **options)
    if not any((folder / name).exists() for name in SAFETENSORS_PATTERNS[:2]):
        folder = _fetch(str(source), (*CONFIG_PATTERNS, *PICKLE_PATTERNS), **options)
    return folder


def _expanded(source: str | os.PathLike[str]) -> Path:
    try:
        return Path(source).expanduser()
    except RuntimeError:  # "~name" of a user that this machine does not have
        return Path(source)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _fetch(repo_id: str, patterns: tuple[str, ...], *, revision, cache_dir, token, local_files_only) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        HTTPError,  # pyright: ignore[reportPrivateImportUsage] (of httpx, which huggingface_hub chooses)
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"{repo_id!r}" + (f" at revision {revision!r}" if revision else "")
    try:
        # Without a network snapshot_download fails at once, while hf_hub_download retries for a long time. For a commit
        # snapshot_download first lists the files, which it also retries; so ask for the repository before.
        if revision is not None and re.fullmatch(_COMMIT, revision) and not local_files_only:
            HfApi(token=token).model_info(repo_id, revision=revision)
        return Path(
            snapshot_download(
                repo_id,
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                local_files_only=local_files_only,
                allow_patterns=list(patterns),
            )
        )
    except RevisionNotFoundError as error:
        raise ValueError(f"the Hub has no {where}") from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"no such file or folder here, and the Hub has no model {where}, or it is private and needs a token"
        ) from error
    except LocalEntryNotFoundError as error:
        reason = "the network is switched off (local_files_only)" if local_files_only else "the Hub cannot be reached"
        raise ValueError(f"{where} is not a path on this machine and not in the cache, and {reason}") from error
    except (OSError, HTTPError) as error:
        raise ValueError(f"{where} cannot be fetched from the Hub ({str(error).splitlines()[0]})") from error
