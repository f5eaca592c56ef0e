"""Completes a bill of materials of the crates with what is not a crate, and checks it. Called by supply.sh.

sbom.py ROOT CRATES PARTS OUT [BINARY]: CRATES is what cargo-cyclonedx wrote, PARTS what `fetch-runtime.sh --list` says.
"""

import hashlib
import json
import sys
from pathlib import Path

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

# What a wheel's name does not say of the part in it.
PARTS = {
    "nats-server": (
        "application",
        "Apache-2.0",
        "pkg:golang/github.com/nats-io/nats-server/v2@v{}",
        "run beside the program",
    ),
    "onnxruntime": ("library", "MIT", "pkg:github/microsoft/onnxruntime@v{}", "loaded by the program when it runs"),
}


def sha256(path):
    return [{"alg": "SHA-256", "content": hashlib.sha256(path.read_bytes()).hexdigest()}]


def component(name, version, wheel, wheel_sha, path):
    """A native part: the file that runs, and the wheel it was taken out of."""
    kind, licence, address, use = PARTS[name]
    if not path.is_file():
        sys.exit(f"sbom: {path} is not there: run deploy/fetch-runtime.sh")
    wheel_hash = [{"alg": "SHA-256", "content": wheel_sha}]
    return {
        "type": kind,
        "bom-ref": address.format(version),
        "name": name,
        "version": version,
        "description": f"{path.name}, {use}",
        "scope": "required",
        "hashes": sha256(path),
        "licenses": [{"expression": licence}],
        "purl": address.format(version),
        "externalReferences": [{"type": "distribution", "url": f"pkg:pypi/{wheel}@{version}", "hashes": wheel_hash}],
    }


def patched(crate, root):
    """What a crate in vendor/ was made of."""
    folder = root / "vendor" / crate["name"]
    patches = [
        {"type": "unofficial", "diff": {"text": {"content": patch.read_text()}}}
        for patch in sorted(folder.glob("*.patch"))
    ]
    published = {
        "type": "library",
        "name": crate["name"],
        "version": crate["version"],
        "purl": f"pkg:cargo/{crate['name']}@{crate['version']}",
    }
    return {"ancestors": [published], "patches": patches}


def main():
    root, crates, parts, out, *binary = map(Path, sys.argv[1:])
    # Where the source lay when the list was made is nobody's business.
    bom = json.loads(crates.read_text().replace(f"file://{root}/", "file:///"))
    natives = [component(*line.split("\t")[:4], Path(line.split("\t")[4])) for line in parts.read_text().splitlines()]
    for crate in bom["components"]:
        if "file:///vendor/" in crate["bom-ref"]:
            crate["pedigree"] = patched(crate, root)
    bom["components"] += natives
    program = bom["metadata"]["component"]
    if binary:
        program["hashes"] = sha256(binary[0])
    graph = {entry["ref"]: entry for entry in bom["dependencies"]}
    graph[program["bom-ref"]].setdefault("dependsOn", []).extend(part["bom-ref"] for part in natives)
    bom["dependencies"] += [{"ref": part["bom-ref"]} for part in natives]
    text = json.dumps(bom, indent=1)
    if str(root) in text:
        sys.exit(f"sbom: the list names {root}, where it was made")
    wrong = JsonStrictValidator(SchemaVersion.V1_5).validate_str(text)
    if wrong is not None:
        sys.exit(f"sbom: not a valid bill of materials: {wrong}")
    nameless = [crate["name"] for crate in bom["components"] if not crate.get("licenses")]
    if nameless:
        sys.exit(f"sbom: no licence is known of {', '.join(nameless)}")
    out.write_text(text + "\n")
    print(f"{out}: {len(bom['components'])} components, valid CycloneDX {bom['specVersion']}")


if __name__ == "__main__":
    main()
