"""What all tests share: exact matrix products, the folder of sample data, warnings as errors."""

import os
import pathlib

import hypothesis

# Several test processes share a GPU.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# Most of the time of these tests goes into compiling: a third of it is saved by optimising less. CI runs the tests of
# the network, of the estimator and of conversion also with XLA's own setting, by naming it.
if "xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"

import jax
import jaxtyping
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

jax.config.update("jax_default_matmul_precision", "highest")
hypothesis.settings.register_profile("default", deadline=None, max_examples=30, derandomize=True)
hypothesis.settings.load_profile("default")

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="session")
def data() -> pathlib.Path:
    """The sample data: $VITPOSE_DATA, or ../shared/data beside the project; tests that need it are skipped without."""
    folder = pathlib.Path(os.environ.get("VITPOSE_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "coco_val" / "images").is_dir():
        pytest.skip("no sample data: set VITPOSE_DATA")
    return folder


@pytest.fixture(scope="session")
def photographs(data) -> list[np.ndarray]:
    """Twelve photographs of the sample data, RGB."""
    paths = sorted((data / "coco_val" / "images").iterdir())[:12]
    return [np.asarray(Image.open(path).convert("RGB")) for path in paths]


@pytest.fixture(scope="session")
def programs(tmp_path_factory) -> pathlib.Path:
    """The folder of compiled programs."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def compiled_once(programs):
    """Models of one kind, also in processes of their own, need each program compiled only once."""
    names = {"jax_compilation_cache_dir": str(programs), "jax_persistent_cache_min_compile_time_secs": 0}
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in names.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
        del os.environ[name.upper()]
    compilation_cache.reset_cache()


@pytest.fixture
def unchecked():
    """Without the checks of types and shapes that run under test: as users meet the code."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
