"""The words of refusals that many routes share. They are sent, and stand as examples in /openapi.json."""

WRONG_HOST = "The service does not answer to the name in the Host header. List its names in the setting TRUSTED_HOSTS."
TOKEN_MISSING = "Send the header 'Authorization: Bearer <token>' with the service's {}."  # noqa: S105 - words
PASSWORD_MISSING = "Send a name of your choice and the CONSOLE_PASSWORD by HTTP Basic authentication."  # noqa: S105
FROM_ELSEWHERE = "{} this machine only. Set {} to reach them from elsewhere."
NOT_TYPED_JSON = "Send JSON in UTF-8, not compressed, with the header 'Content-Type: application/json'."
NOT_UTF8 = "The query holds raw bytes that are not UTF-8."
