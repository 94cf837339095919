"""Trims recordings of the original system into the fixtures beside this file.

    python3 convert.py FOLDER-OF-RECORDINGS

Each line of a fixture is one exchange:

- `name`, `method`, `path`, `headers` (as sent, in order), `body`;
- `at`: when the original answered, which is the time that a replay must believe in, because the dates and the signatures
  of the requests are kept as they were;
- `signer`: the access key, if the signature was right. A replay whose secrets or bodies differ signs again exactly these;
- `status`, `answer_headers` (those that matter), `answer` (JSON, or null where it is none or too long to keep).
"""

import email.utils
import hashlib
import hmac
import json
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).resolve().parent
MATTERS = re.compile(r"(?i)content-type|allow|access-control-.*|x-ratelimit-(limit|window)|x-backendai-.*")
LIMIT = 2048
# The keys of the original's published sample fixture, and of the accounts that the recording made.
SECRETS = {"AKIAIOSFODNN7EXAMPLE": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}
NOT_YET = re.compile(r"/(v\d/)?(admin|folders)")
OTHER_MODULES = re.compile(r"/(v\d/)?(admin|folders|resource|config|manager|events)|.*/(httpproxy|tcpproxy|events)")


def credential(headers):
    """Access key and signature."""
    found = re.search(r"credential=\s*([^:\s]+):([0-9a-f]+)", headers.get("authorization", ""))
    return found.groups() if found else (None, None)


def is_rightly_signed(record, headers):
    """Checks the superadmin's signatures; the others' were right wherever the original let them in."""
    access_key, signature = credential(headers)
    if access_key not in SECRETS:
        return access_key is not None and record["status"] != 401
    name = re.search(r"signMethod=HMAC-(\w+)", headers["authorization"])
    algorithm = name.group(1).lower() if name else ""
    if algorithm not in ("sha256", "sha1", "sha512", "sha224", "sha384"):
        return False
    date = next((headers[key] for key in ("date", "x-backendai-date", "x-sorna-date") if headers.get(key)), "")
    day = "".join(re.findall(r"\d+", date)[:3])[:8]
    sorna = "x-backendai-version" not in headers
    version = headers.get("x-sorna-version" if sorna else "x-backendai-version", "")
    body = record["request_body"].encode()
    content_type = headers.get("content-type", "").split(";")[0].strip().lower()
    text = "\n".join(
        [
            record["method"],
            record["path"],
            date,
            "host:" + headers.get("host", ""),
            "content-type:" + content_type,
            "x-%s-version:%s" % ("sorna" if sorna else "backendai", version),
        ]
    )
    key = SECRETS[access_key].encode()
    for part in (day, headers.get("host", "")):
        key = hmac.new(key, part.encode(), algorithm).digest()
    candidates = (body, b"")
    return any(
        hmac.new(key, (text + "\n" + hashlib.new(algorithm, b).hexdigest()).encode(), algorithm).hexdigest() == signature
        for b in candidates
    )


def exchange(record):
    headers = {name.lower(): value for name, value in record["request_headers"]}
    answer = record.get("response_json")
    if len(json.dumps(answer)) > LIMIT:
        answer = None
    sent = dict(record["response_headers"])
    return {
        "name": record["name"],
        "method": record["method"],
        "path": record["path"],
        "headers": record["request_headers"],
        "body": record["request_body"],
        "at": email.utils.parsedate_to_datetime(sent["Date"]).isoformat(),
        "signer": credential(headers)[0] if is_rightly_signed(record, headers) else None,
        "status": record["status"],
        "answer_headers": [[k, v] for k, v in record["response_headers"] if MATTERS.fullmatch(k)],
        "answer": answer,
    }


def convert(source, target, keep=lambda record: True):
    with open(source) as lines, open(HERE / target, "w") as out:
        for line in lines:
            record = json.loads(line)
            sizes = len(record.get("request_body") or "")
            if "Date" in dict(record.get("response_headers") or ()) and sizes <= LIMIT and keep(record):
                out.write(json.dumps(exchange(record), ensure_ascii=False) + "\n")


def main():
    folder = pathlib.Path(sys.argv[1])
    convert(folder / "01-basic.jsonl", "basic.jsonl")
    convert(folder / "02-auth.jsonl", "auth.jsonl")
    for number, module in (("03", "config"), ("04", "manager"), ("05", "resource")):
        convert(
            folder / f"{number}-{module}.jsonl",
            f"{module}.jsonl",
            lambda record: not NOT_YET.match(record["path"]),
        )
    convert(
        folder / "09-session.jsonl",
        "session.jsonl",
        lambda record: record["method"] != "GET(ws)" and not OTHER_MODULES.match(record["path"]),
    )


if __name__ == "__main__":
    main()
