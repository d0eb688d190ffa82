"""Refusals, in the shape that OpenAI's clients read."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KINDS = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error", 408: "timeout_error",
         429: "rate_limit_error"}


class RefusedError(Exception):
    """A request that gets an error.

    Parameters
    ----------
    status : int
        Of HTTP.
    message : str
    param : str, optional
        The field that is wrong.
    code : str, optional
        A name that programs can rely on.
    headers : dict, optional
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None,
                 headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, dict(headers or {})

    def body(self) -> dict[str, Any]:
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def bad(param: str | None, message: str, code: str | None = None) -> RefusedError:
    """A field that is wrong."""
    return RefusedError(400, message if param is None else f"{param}: {message}", param, code)
