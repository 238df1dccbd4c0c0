"""Endpoints of uploaded files, in the form that the OpenAI and Kimi clients share."""

from collections.abc import AsyncGenerator

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import Response

from gateway.dialects.context import gateway_of
from gateway.dialects.service_types import DeletedFile, FileList
from gateway.http.body import quote
from gateway.http.routes import ApiRoute, json_response
from services.runtime.errors import InvalidRequest

PURPOSES = ("file-extract", "image", "video", "batch")
MAX_NAME_CHARS = 255
# Around the file: boundaries, headers of parts, the other fields.
FORM_BYTES = 64 << 10
UPLOAD = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file", "purpose"],
                "properties": {
                    "file": {"type": "string", "format": "binary"},
                    "purpose": {"type": "string", "enum": list(PURPOSES)},
                },
            }
        }
    },
}


async def upload_file(request: Request) -> Response:
    """Keep a file for a while; `ms://ID` then names it where an image or a video is expected."""
    gateway = gateway_of(request)
    max_bytes = gateway.settings.max_file_bytes
    form = await _form_of(request, await gateway.bodies.read_bytes(request, max_bytes + FORM_BYTES))
    try:
        file, purpose = form.get("file"), form.get("purpose")
        if not isinstance(file, UploadFile):
            raise InvalidRequest("file: a file is required", field="file")
        if purpose not in PURPOSES:
            raise InvalidRequest(f"purpose: must be one of {', '.join(PURPOSES)}", field="purpose")
        data = await file.read()
        if len(data) > max_bytes:
            raise InvalidRequest(f"file: {len(data)} bytes, at most {max_bytes} are accepted", field="file")
        name = (file.filename or "")[:MAX_NAME_CHARS]
        return json_response(await gateway.files.put(_owner_of(request), name, str(purpose), data))
    finally:
        await form.close()


async def list_files(request: Request) -> Response:
    """List the files of this key."""
    files = await gateway_of(request).files.listing(_owner_of(request))
    listed: FileList = {"object": "list", "data": files, "has_more": False}
    return json_response(listed)


async def get_file(request: Request) -> Response:
    """Describe a file."""
    return json_response(await gateway_of(request).files.describe(_owner_of(request), _file_of(request)))


async def get_content(request: Request) -> Response:
    """Return the bytes of a file."""
    data = await gateway_of(request).files.content(_owner_of(request), _file_of(request))
    # Browsers must not show an uploaded file as a page of this server.
    headers = {"content-disposition": "attachment", "x-content-type-options": "nosniff"}
    return Response(data, media_type="application/octet-stream", headers=headers)


async def delete_file(request: Request) -> Response:
    """Drop a file before its time."""
    await gateway_of(request).files.delete(_owner_of(request), _file_of(request))
    deleted: DeletedFile = {"id": _file_of(request), "object": "file", "deleted": True}
    return json_response(deleted)


def _owner_of(request: Request) -> str:
    return str(request.scope["moonshard.owner"])


def _file_of(request: Request) -> str:
    return str(request.path_params["file_id"])


async def _form_of(request: Request, raw: bytes) -> FormData:
    content_type = request.headers.get("content-type", "")
    if content_type.split(";")[0].strip().lower() != "multipart/form-data" or "boundary=" not in content_type.lower():
        raise InvalidRequest(
            f"Content-Type must be multipart/form-data, not {quote(content_type)}", field="Content-Type"
        )

    async def whole() -> AsyncGenerator[bytes, None]:
        yield raw

    try:
        return await MultiPartParser(request.headers, whole(), max_files=1, max_fields=16).parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise InvalidRequest("the body is not a valid form with one file") from error


ROUTES = (
    ApiRoute("POST", "/v1/files", upload_file, body=UPLOAD),
    ApiRoute("GET", "/v1/files", list_files),
    ApiRoute("GET", "/v1/files/{file_id}", get_file),
    ApiRoute("GET", "/v1/files/{file_id}/content", get_content),
    ApiRoute("DELETE", "/v1/files/{file_id}", delete_file),
)
