"""Published custom resource definitions, cut down to what our manifests touch: `python -m tests.crd_fields SOURCE CRD.yaml MANIFEST.yaml...`.

At every level that a manifest reaches, all field names of the definition stay, so that a misspelt one is found; below fields that no
manifest uses nothing is kept. Descriptions are dropped. The result is a JSON schema in deploy/kubernetes/crds.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.deployed import DEPLOY

CRDS = DEPLOY / "kubernetes" / "crds"
KEPT = ("type", "required", "enum", "pattern", "minimum", "maximum", "minItems", "anyOf")


def cut(schema: dict[str, Any], used: list[Any]) -> dict[str, Any]:
    """Keep what checks the values in `used`, which stand at this place in manifests."""
    found = {
        key: schema[key] for key in KEPT if key in schema and not schema.get("x-kubernetes-int-or-string")
    }
    maps = [each for each in used if isinstance(each, dict)]
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found["additionalProperties"] = False
        found["properties"] = {
            name: cut(below, values) if (values := [each[name] for each in maps if name in each]) else {}
            for name, below in schema["properties"].items()
        }
    elif isinstance(schema.get("additionalProperties"), dict):
        values = [value for each in maps for value in each.values()]
        found["additionalProperties"] = cut(schema["additionalProperties"], values)
    if "items" in schema:
        values = [value for each in used if isinstance(each, list) for value in each]
        found["items"] = cut(schema["items"], values)
    return found


def main(arguments: list[str]) -> None:
    """Write one file for the kind of the definition."""
    source, definition, *manifests = arguments
    crd = yaml.safe_load(Path(definition).read_text())
    kind, group = crd["spec"]["names"]["kind"], crd["spec"]["group"]
    documents = [each for path in manifests for each in yaml.safe_load_all(Path(path).read_text())]
    ours = [each for each in documents if each["kind"] == kind]
    for version in crd["spec"]["versions"]:
        if ours and f"{group}/{version['name']}" == ours[0]["apiVersion"]:
            schema = cut(version["schema"]["openAPIV3Schema"], ours)
            schema["properties"]["metadata"] = {"type": "object"}
            text = json.dumps({"$comment": source, "apiVersion": ours[0]["apiVersion"], **schema}, indent=1)
            (CRDS / f"{kind.lower()}.json").write_text(text + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
