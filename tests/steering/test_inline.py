import base64
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilothouse.core.directions import digest_rows
from pilothouse.core.errors import BadRequest
from pilothouse.core.sites import Float32, ModelShape
from pilothouse.steering import decode_inline


def f32(numbers: Any) -> Float32:
    return np.array(numbers, dtype=np.float32)


SHAPE = ModelShape("org/tiny", 4, 6, (0, 1, 2, 3, 5))


def encode(*numbers: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


def test_rows_arrive_as_they_were_sent() -> None:
    direction = decode_inline({"3": encode(1, 2, 3, 4), "0": encode(0, -0.5, 0, 0)}, SHAPE, "steering[0].inline")
    assert {layer: row.tolist() for layer, row in direction.layers.items()} == {3: [1, 2, 3, 4], 0: [0, -0.5, 0, 0]}
    assert direction.digest == digest_rows({0: f32([0, -0.5, 0, 0]), 3: f32([1, 2, 3, 4])})


BAD = {
    "not base64": ("3", "!!!!"),
    "bad padding": ("3", encode(1, 2, 3, 4)[:-1]),
    "not ascii": ("3", "ÿÿÿÿ"),
    "line breaks": ("3", encode(1, 2, 3, 4)[:8] + "\n" + encode(1, 2, 3, 4)[8:]),
    "url alphabet": ("3", "-_" + encode(1, 2, 3, 4)[2:]),
    "too narrow": ("3", encode(1, 2, 3)),
    "too wide": ("3", encode(1, 2, 3, 4, 5)),
    "float64": ("3", base64.b64encode(struct.pack("<4d", 1, 2, 3, 4)).decode()),
    "not of four bytes": ("3", base64.b64encode(b"x" * 15).decode()),
    "empty": ("3", ""),
    "nan": ("3", encode(1, 2, 3, float("nan"))),
    "inf": ("3", encode(1, 2, 3, float("-inf"))),
    "too deep": ("6", encode(1, 2, 3, 4)),
    "no site": ("4", encode(1, 2, 3, 4)),
    "negative": ("-1", encode(1, 2, 3, 4)),
    "a fraction": ("1.5", encode(1, 2, 3, 4)),
    "leading zero": ("03", encode(1, 2, 3, 4)),
    "a word": ("all", encode(1, 2, 3, 4)),
    "other digits": ("٣", encode(1, 2, 3, 4)),
}


@pytest.mark.parametrize(("layer", "text"), BAD.values(), ids=BAD)
def test_what_is_wrong_is_named_by_its_place(layer: str, text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        decode_inline({"1": encode(1, 2, 3, 4), layer: text}, SHAPE, "steering[2].inline")
    assert caught.value.param == f"steering[2].inline.layers.{layer}"


def test_no_layers_is_a_bad_request() -> None:
    with pytest.raises(BadRequest) as caught:
        decode_inline({}, SHAPE, "steering[0].inline")
    assert caught.value.param == "steering[0].inline.layers"


@given(st.text(max_size=8), st.text(max_size=30))
def test_no_text_ends_in_another_exception(layer: str, text: str) -> None:
    with pytest.raises(BadRequest):
        decode_inline({layer: text}, SHAPE, "inline")
