"""A judge behind an HTTP endpoint as a penalty: it says how unsafe each image is, the term is minus that."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from sdr1.base.errors import TrainingError, UserError, reason
from sdr1.base.plain_data import parse_json
from sdr1.config.rewards import HttpTerm
from sdr1.rewards.terms.term import TermContext

if TYPE_CHECKING:
    import numpy as np

    from sdr1.base.records import Prompt
    from sdr1.rewards.terms.term import Term


_MOST_BYTES, _BYTES_PER_IMAGE = 2**20, 64
"""No honest answer is longer."""


def check(options: HttpTerm, field: str) -> None:
    try:
        parts = urlsplit(options.url)
        sound = bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound:
        raise UserError(f"{field}.url: names no host that can be asked; write it as http://HOST:PORT/PATH")


def build(options: HttpTerm, context: TermContext) -> Term:
    import numpy as np

    check(options, context.field)

    def term(images_NHWC: np.ndarray, prompt: Prompt) -> np.ndarray:
        unsafe: list[float] = []
        for start in range(0, len(images_NHWC), options.batch):
            unsafe += _ask(options, images_NHWC[start : start + options.batch], prompt.text, context.field)
        return -np.array(unsafe, np.float32)

    return term


def _ask(options: HttpTerm, images_NHWC: np.ndarray, text: str, field: str) -> list[float]:
    """Raises TrainingError once every try has failed."""
    import aiohttp

    body = json.dumps({"prompt": text, "images": [_png(image) for image in images_NHWC]}).encode()
    problem = ""
    # A thread: where a notebook calls, this one has a running loop already.
    with ThreadPoolExecutor(1) as thread:
        for attempt in range(options.retries + 1):
            if attempt:
                time.sleep(min(0.5 * 2 ** (attempt - 1), 10.0))
            try:
                answer = thread.submit(asyncio.run, _post(options, body, len(images_NHWC))).result()
                return _read(answer, len(images_NHWC))
            except TimeoutError:
                problem = f"no whole answer within {options.timeout:g} s"
            except aiohttp.ClientConnectorError as error:
                problem = f"cannot connect ({reason(error.os_error)})"
            except aiohttp.ClientError as error:
                # Their text may quote the URL, whose query may hold a token.
                problem = f"broken answer ({type(error).__name__})"
            except (OSError, ValueError) as error:
                problem = reason(error)
    # The host alone, for the same reason.
    host = urlsplit(options.url).netloc.rpartition("@")[2]
    raise TrainingError(
        f"{field}: the judge at {host} failed {options.retries + 1} times; the last: {problem}"
    )


async def _post(options: HttpTerm, body: bytes, images: int) -> bytes:
    """The answer's body; the timeout is of everything, however slowly it drips."""
    import aiohttp

    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    most = _MOST_BYTES + _BYTES_PER_IMAGE * images
    async with (
        aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=options.timeout), auto_decompress=False, trust_env=True
        ) as session,
        session.post(options.url, data=body, headers=headers) as response,
    ):
        if response.status != 200:
            raise ValueError(f"HTTP status {response.status}")
        held = bytearray()
        async for part in response.content.iter_chunked(2**16):
            held += part
            if len(held) > most:
                raise ValueError(f"an answer of more than {most} bytes")
        return bytes(held)


def _read(answer: bytes, count: int) -> list[float]:
    held = parse_json(answer, "the answer")
    unsafe = held.get("unsafe") if isinstance(held, dict) else None
    if not isinstance(unsafe, list) or len(unsafe) != count:
        raise ValueError(f'no list "unsafe" of {count} numbers in the answer')
    if not all(isinstance(value, int | float) and 0 <= value <= 1 for value in unsafe):
        raise ValueError("something else than a number in 0..1 in the answer")
    return [float(value) for value in unsafe]


def _png(image_HWC: np.ndarray) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image_HWC).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()
