"""A form (multipart/form-data) that arrived whole -> its parts. File names are not even kept.

for part in read_form(content_type, body): part.name, part.is_file, part.data
"""

from __future__ import annotations

from dataclasses import dataclass

from petalite.serve.refusal import Refusal

MAX_PARTS = 16


@dataclass(frozen=True)
class Part:
    """One field of a form."""

    name: bytes | None
    is_file: bool
    data: bytes


class _Reader:
    """What the parser calls as it goes along."""

    def __init__(self) -> None:
        self.parts: list[tuple[dict[bytes, bytes], bytearray]] = []
        self.ended = False
        self._field, self._value = bytearray(), bytearray()

    def on_part_begin(self) -> None:
        if len(self.parts) == MAX_PARTS:
            raise Refusal(422, "invalid_request", f"the form has more than {MAX_PARTS} parts")
        self.parts.append(({}, bytearray()))

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        self.parts[-1][0][bytes(self._field).lower()] = bytes(self._value)
        self._field, self._value = bytearray(), bytearray()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1][1].extend(memoryview(data)[start:end])

    def on_end(self) -> None:
        self.ended = True


def read_form(content_type: str, body: bytes) -> list[Part]:
    """The parts of a form. Raises Refusal with 422 when it is damaged or cut off."""
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser, parse_options_header

    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise Refusal(422, "invalid_request", "the form's content type has no boundary")
    reader = _Reader()
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": reader.on_part_begin,
                "on_header_field": reader.on_header_field,
                "on_header_value": reader.on_header_value,
                "on_header_end": reader.on_header_end,
                "on_part_data": reader.on_part_data,
                "on_end": reader.on_end,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Refusal(422, "invalid_request", f"the form is damaged: {str(error)[:120]}") from None
    if not reader.ended:
        raise Refusal(422, "invalid_request", "the form is cut off")
    parts = []
    for headers, data in reader.parts:
        options = parse_options_header(headers.get(b"content-disposition", b""))[1]
        parts.append(Part(options.get(b"name"), b"filename" in options, bytes(data)))
    return parts
