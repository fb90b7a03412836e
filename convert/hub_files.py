"""Where a source is: a path on this machine, or a repository of the Hub fetched into the cache of its library."""

import re
from pathlib import Path

from vitpose_jax.bundled import bundled_model

from .torch_files import find_weights, weight_paths

CONFIGS = ("config.json", "preprocessor_config.json")
SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin")

_COMMIT = r"[0-9a-f]{40}"


def resolve_source(
    source: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | None = None,
    local_files_only: bool = False,
) -> Path:
    """The path of a source; one of the Hub is fetched first, if it is not in the cache.

    Args:
        source: a path that exists, the name of a model that comes with the package, or the id of one on the Hub,
            "user/name".
        revision: branch, tag or commit on the Hub.
        cache_dir: where huggingface_hub caches; None for its own default.
        token: for private repositories; None for the one that library knows.
        local_files_only: do not ask the network.

    Raises:
        ValueError: where there is no such path, or it cannot be had from the Hub.
    """
    path = Path(source).expanduser()
    if path.exists():
        if revision is not None:
            raise ValueError(f"{source}: a revision ({revision!r}) goes with an id of the Hub, and this is a path")
        return path
    bundled = bundled_model(str(source))
    if bundled is not None:
        if revision is not None:
            raise ValueError(
                f"{source}: a revision ({revision!r}) goes with an id of the Hub, and this model is bundled"
            )
        return bundled
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) or path.suffix in (".pth", ".pt", ".bin", ".safetensors"):
        raise ValueError(f"{source}: no such file or folder, and not the id of a model on the Hub ('user/name') either")
    options = {"revision": revision, "cache_dir": cache_dir, "token": token}
    # A commit never changes: where the cache holds all of it, nobody need be asked.
    if revision is not None and re.fullmatch(_COMMIT, revision) and not local_files_only:
        try:
            folder = _fetch(str(source), CONFIGS, **options, local_files_only=True)
            weight_paths(find_weights(folder))
            return folder
        except ValueError:
            pass
    folder = _fetch(str(source), (*CONFIGS, *SAFETENSORS), **options, local_files_only=local_files_only)
    if not any((folder / name).exists() for name in SAFETENSORS[:2]):
        folder = _fetch(str(source), (*CONFIGS, *PICKLES), **options, local_files_only=local_files_only)
    return folder


def _fetch(repo_id: str, patterns: tuple[str, ...], *, revision, cache_dir, token, local_files_only) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"{repo_id!r}" + (f" at revision {revision!r}" if revision else "")
    try:
        # Without a network snapshot_download fails at once, where hf_hub_download tries for long; but of a commit
        # it asks for the files first, and tries that for long, too.
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
            f"no such file or folder here, and no model {where} on the Hub, or it is private and needs a token"
        ) from error
    except LocalEntryNotFoundError as error:
        reason = "the network was not to be used" if local_files_only else "the Hub cannot be reached"
        raise ValueError(f"{where} is no path on this machine and not in the cache, and {reason}") from error
    except (OSError, HTTPError) as error:
        raise ValueError(f"{where} cannot be fetched from the Hub ({str(error).splitlines()[0]})") from error
