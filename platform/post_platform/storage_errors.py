"""What the errors of an S3 client mean: try again, or one clear line for the user.

Classes are told by name, so that nothing but `storage` imports the client. The store's own words are never repeated:
they may hold keys and signatures.
"""

from __future__ import annotations

from typing import Any

from post_platform.errors import ConfigError, DataError, StorageError

TRANSIENT_CODES = {
    *("BadDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch", "IncompleteBody"),  # damaged on the way
    *("NoSuchUpload", "InvalidPart"),  # a multipart upload whose completion was confirmed to nobody
    *("RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "OperationAborted"),
}
TRANSIENT_KINDS = {
    "FlexibleChecksumError": "its checksum is not the one that the store sent",
    "IncompleteReadError": "the connection ended before the object did",
    "S3DownloadFailedError": "it changed while it was read",
    "S3ValidationError": "the store sent another range than the one wanted",
    "ConnectTimeoutError": "the store does not answer",
    "ReadTimeoutError": "the store does not answer",
    "TimeoutError": "the store does not answer",
    "EndpointConnectionError": "no connection to the store",
    "ConnectionError": "the connection broke off",
    "HTTPClientError": "the connection broke off",
    "HTTPError": "the connection broke off",  # of urllib3, while a body is read
}
"""From the special to the general, as in the client's hierarchy."""

REGION_CODES = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
ACCESS_HINT = "credentials and endpoint: AWS_PROFILE or AWS_ACCESS_KEY_ID, AWS_REGION, AWS_ENDPOINT_URL"
TRANSIENT_HINT = "look at the store and the network (AWS_ENDPOINT_URL), then run the same command again"


class DamagedError(Exception):
    """Bytes arrived that are not those of the object."""


def transient_reason(error: Exception) -> str:
    """What went wrong, when trying again may help; '' otherwise."""
    if isinstance(error, DamagedError):
        return str(error)
    kinds = [kind.__name__ for kind in type(error).__mro__]
    if "RetriesExceededError" in kinds:
        return transient_reason(error.last_exception)  # type: ignore[attr-defined]
    if "ClientError" in kinds:
        code, status = _answer(error)
        known = code in TRANSIENT_CODES or status == 429 or status >= 500
        return f"the store answers {code} (HTTP {status})" if known else ""
    return next((reason for kind, reason in TRANSIENT_KINDS.items() if kind in kinds), "")


def final_error(path: object, bucket: str, error: Exception) -> Exception:
    """What to raise when trying again cannot help; an error that is not the client's (a full disk, a bug) as it is."""
    kinds = [kind.__name__ for kind in type(error).__mro__]
    if "ParamValidationError" in kinds:
        return ConfigError(f"{path}: no valid name of a bucket or an object")
    if "ClientError" not in kinds:
        return StorageError(f"{path}: {kinds[0]}", ACCESS_HINT) if "BotoCoreError" in kinds else error
    code, status = _answer(error)
    if code == "NoSuchBucket":
        return StorageError(f"{path}: there is no bucket {bucket!r}", ACCESS_HINT)
    if status == 404 or code == "NoSuchKey":
        return DataError(f"{path}: not found")
    if status == 416:
        return DataError(f"{path}: ends before the bytes that are wanted: the file is truncated")
    if status == 301 or code in REGION_CODES:
        headers = getattr(error, "response", {}).get("ResponseMetadata", {}).get("HTTPHeaders", {})
        region = headers.get("x-amz-bucket-region", "")
        place = f"in region {region}" if region else "in another region"
        return StorageError(f"{path}: the bucket lies {place}", f"export AWS_REGION={region or '<its region>'}")
    return StorageError(f"{path}: refused: {code} (HTTP {status})", ACCESS_HINT)


def _answer(error: Any) -> tuple[str, int]:
    """The store's error code and HTTP status."""
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return str(error.response.get("Error", {}).get("Code", "")), status
