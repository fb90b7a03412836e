"""Images by URL: http, https and file; nothing else is opened, and size and time are bounded."""

import http.client
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any

# The most bytes of a download, and the most seconds that it may take, with redirects.
MAX_BYTES = 64 * 2**20
MAX_SECONDS = 60.0
# The most seconds without a byte.
SILENT_SECONDS = 15.0
MAX_REDIRECTS = 5

_CHUNK = 2**16
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


class RemoteImage:
    """The file behind a URL, downloaded once, at the first `read`; several threads may call it.

    Args:
        url: http or https, or what `download` reads.
        download: reads the file behind a URL; None for `fetch`. Its OSError or ValueError is the image's error.
    """

    def __init__(self, url: str, download: Callable[[str], bytes] | None = None):
        self.url = url
        self._download = fetch if download is None else download
        self._lock = threading.Lock()
        self._content: bytes | None = None
        self._error: Exception | None = None

    def read(self) -> bytes:
        """The content of the file.

        Raises:
            OSError, ValueError: as `fetch`; every call raises the error of the first.
        """
        with self._lock:
            if self._content is None and self._error is None:
                try:
                    self._content = self._download(self.url)
                except (OSError, ValueError) as error:
                    self._error = error
            if self._error is not None:
                raise self._error
            return self._content or b""


def scheme_of(text: str) -> str | None:
    """The scheme of a URL in lower case: "https", "file", ...; None for a path."""
    match = _SCHEME.match(text)
    return match[1].lower() if match else None


def is_remote(image: object) -> bool:
    """Whether an image is named by an http or https URL. A `pathlib.Path` never is."""
    return isinstance(image, str) and scheme_of(image) in ("http", "https")


def remote(image: Any) -> Any:
    """An http or https URL as a `RemoteImage`, which downloads it once; anything else as it is."""
    return RemoteImage(image) if is_remote(image) else image


def file_path(url: str) -> str:
    """The path that a file URL names.

    Raises:
        ValueError: for a file of another machine.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise ValueError(f"{url}: expected a file of this machine, file:///PATH, got the host {parts.netloc!r}")
    return urllib.request.url2pathname(parts.path)


def fetch(
    url: str, *, max_bytes: int = MAX_BYTES, max_seconds: float = MAX_SECONDS, silent_seconds: float = SILENT_SECONDS
) -> bytes:
    """Download a file by http or https; proxies of the environment are used.

    Args:
        url: http or https. Redirects lead to http and https alone.
        max_bytes: the most bytes of the file.
        max_seconds: the most seconds in all.
        silent_seconds: the most seconds without a byte.

    Raises:
        ConnectionError: in one line, if the server cannot be reached, answers with an error or takes too long.
        ValueError: for another kind of URL, for a redirect to one, for a file that is too large, and for a web page.
    """
    if scheme_of(url) not in ("http", "https"):
        raise ValueError(f"{url}: expected a URL that begins with http:// or https://")
    outcome: list[bytes | Exception] = []

    def download() -> None:
        try:
            outcome.append(_download(url, max_bytes, time.monotonic() + max_seconds, silent_seconds))
        except (OSError, ValueError, http.client.HTTPException) as error:
            outcome.append(error)

    # Neither the look-up of a name nor a slow answer has a time limit of its own: the thread is left behind then.
    thread = threading.Thread(target=download, daemon=True)
    thread.start()
    thread.join(max_seconds)
    if not outcome:
        raise ConnectionError(f"{url}: not downloaded within {max_seconds:g} seconds; download it to a file first")
    (result,) = outcome
    if isinstance(result, bytes):
        return result
    raise _explain(url, result) from None


def _download(url: str, max_bytes: int, deadline: float, silent_seconds: float) -> bytes:
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "vitpose-jax", "Accept": "image/*, */*;q=0.5"})
    except ValueError as error:
        raise ValueError(f"{url}: expected a URL, {error}") from None
    too_large = f"{url}: expected at most {max_bytes // 2**20} MiB, got a larger file; download it to a file first"
    chunks, count = [], 0
    with _opener().open(request, timeout=silent_seconds) as response:
        if response.headers.get_content_type() == "text/html":
            raise ValueError(f"{url}: expected an image, got a web page; give the address of the image itself")
        length = response.headers.get("Content-Length", "")
        if length.isdecimal() and int(length) > max_bytes:
            raise ValueError(too_large)
        while chunk := response.read1(_CHUNK):
            chunks.append(chunk)
            count += len(chunk)
            if count > max_bytes:
                raise ValueError(too_large)
            if time.monotonic() > deadline:
                raise TimeoutError("it takes too long")
    if length.isdecimal() and count < int(length):
        raise ConnectionError(f"the connection ended after {count} of {length} bytes")
    return b"".join(chunks)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https alone: one to file:// would read files of this machine."""

    max_redirections = MAX_REDIRECTS

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if scheme_of(newurl) not in ("http", "https"):
            fp.close()
            raise ValueError(f"{req.full_url}: expected a redirect to http or https, got one to {newurl[:80]}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """Opens http and https; urllib's own opener also opens files, ftp and data."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        _Redirects(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _explain(url: str, error: Exception) -> Exception:
    """The error of a download in one line that names the URL."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        if error.code in (301, 302, 303, 307, 308):
            # urllib's own refusal of a file, and of too many redirects.
            return ValueError(f"{url}: its redirects are not followed: {_line(error.reason)}")
        return ConnectionError(f"{url}: the server answers {error.code} {_line(error.reason)}")
    if isinstance(error, urllib.error.URLError):
        return ConnectionError(
            f"{url}: cannot be reached ({_line(error.reason)}); check the address, and that this machine is online"
        )
    if isinstance(error, ValueError) and str(error).startswith("http"):
        return error
    return ConnectionError(f"{url}: the download failed ({_line(error) or type(error).__name__})")


def _line(reason: object) -> str:
    return " ".join(str(reason).split())[:200]
