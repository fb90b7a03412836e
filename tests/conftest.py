"""What all tests share: exact matrix products, photographs, the large local data, and a check of skips."""

import os
import pathlib
import signal

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


# Five photographs of COCO val2017 and the annotations of their 24 people: tests/data/README.md names the licences.
SAMPLE = ROOT / "tests" / "data"
LARGE_DATA = pathlib.Path(os.environ.get("VITPOSE_DATA", ROOT.parent / "shared" / "data"))


def has_large_data() -> bool:
    return (LARGE_DATA / "coco_val" / "images").is_dir()


def pytest_itemcollected(item):
    """Mark the tests that use the large data."""
    if "data" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.large)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """With VITPOSE_NO_SKIPS=1 a skipped test fails, except a `large` one where the large data is absent."""
    report = yield
    allowed = item.get_closest_marker("large") is not None and not has_large_data()
    expected_failure = hasattr(report, "wasxfail")
    if os.environ.get("VITPOSE_NO_SKIPS") == "1" and report.skipped and not (allowed or expected_failure):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, but VITPOSE_NO_SKIPS=1 allows no skips: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def data() -> pathlib.Path:
    """The large data: $VITPOSE_DATA, or ../shared/data beside the project; tests that use it skip without it."""
    if not has_large_data():
        pytest.skip("no large data: set VITPOSE_DATA")
    return LARGE_DATA


@pytest.fixture(scope="session")
def sample_folder() -> pathlib.Path:
    """The folder of photographs and annotations that come with the repository."""
    return SAMPLE


@pytest.fixture(scope="session")
def photographs() -> list[np.ndarray]:
    """The five photographs that come with the repository, RGB."""
    return [np.asarray(Image.open(path).convert("RGB")) for path in sorted((SAMPLE / "images").iterdir())]


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
def ctrl_c():
    """Ctrl-C acts as at a terminal: a shell makes programs in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def unchecked():
    """Without the checks of types and shapes that run under test: as users meet the code."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
