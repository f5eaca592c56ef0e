"""Holds rendered Kubernetes documents against schemas, and against each other. Called by check-manifests.sh.

Kinds that come with Kubernetes are validated strictly by kubernetes-validate; KEDA's by the models of cloudcoil, which
take fields they do not know, so that names are compared here as well. Whatever neither knows is a failure. What no
schema sees is checked after that: names that one document calls another by, files that must agree with others, in
check_pods.py what pods may do and whom they may reach, and in check_servers.py that what they say is encrypted.
"""

import base64
import json
import re
import sys
import typing
from pathlib import Path

import kubernetes_validate
import pydantic
import yaml
from cloudcoil.models.keda import v1alpha1 as keda

from check_pods import Wrong, check_compose, check_images, check_network, check_passwords, check_rights
from check_pods import containers, images_of, matches, name_of, prove
from check_servers import check_compose_encryption, check_encryption, prove_compose, prove_encryption, prove_servers

try:
    import tomllib
except ModuleNotFoundError:
    import tomli as tomllib

KUBERNETES = "1.37.0"
# Named, because kubernetes-validate looks at the first word of a group only.
BUILT_IN = {"v1", "apps/v1", "batch/v1", "networking.k8s.io/v1", "policy/v1", "scheduling.k8s.io/v1"}
KEDA = "keda.sh/v1alpha1"
# What KEDA's documentation lists for a trigger, must and may; in its schema it is a free map.
TRIGGERS = {
    "prometheus": (
        {"serverAddress", "query", "threshold"},
        {
            "activationThreshold", "authModes", "customHeaders", "ignoreNullValues", "namespace", "queryParameters",
            "timeout", "unsafeSsl",
        },
    ),
}
# The schemas take any word where the cluster takes a few; a name alone, or with the one it stands under.
WORDS = {
    "accessModes": {"ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"},
    "effect": {"NoSchedule", "PreferNoSchedule", "NoExecute"},
    "fsGroupChangePolicy": {"Always", "OnRootMismatch"},
    "hostPath.type": {"DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice"},
    "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
    "metricType": {"AverageValue", "Value", "Utilization"},
    "policies.type": {"Pods", "Percent"},
    "policyTypes": {"Ingress", "Egress"},
    "preemptionPolicy": {"Never", "PreemptLowerPriority"},
    "protocol": {"TCP", "UDP", "SCTP"},
    "restartPolicy": {"Always", "OnFailure", "Never"},
    "seccompProfile.type": {"RuntimeDefault", "Localhost", "Unconfined"},
    "selectPolicy": {"Max", "Min", "Disabled"},
    "spec.type": {"ClusterIP", "NodePort", "LoadBalancer", "ExternalName"},
    "strategy.type": {"Recreate", "RollingUpdate"},
    "tolerations.operator": {"Exists", "Equal", "Lt", "Gt"},
}
NUMBERS = {"threshold", "activationThreshold", "timeout"}
FLAGS = {"ignoreNullValues", "unsafeSsl"}


# --- schemas ---


def check_built_in(document):
    try:
        return "kubernetes " + kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        raise Wrong(f"{'.'.join(map(str, error.path)) or 'the document'}: {error.message}") from error
    except kubernetes_validate.SchemaNotFoundError as error:
        raise Wrong(error.message) from error


def check_keda(document):
    model = getattr(keda, document["kind"], None)
    if model is None:
        raise Wrong(f"KEDA has no kind {document['kind']}")
    try:
        model.model_validate(document)
    except pydantic.ValidationError as error:
        reasons = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise Wrong("; ".join(reasons)) from error
    unknown = list(unknown_names(model, document, ""))
    if unknown:
        raise Wrong(f"unknown field {', '.join(unknown)}")
    for number, trigger in enumerate(document["spec"].get("triggers", [])):
        check_trigger(trigger, f"spec.triggers.{number}")
    return "keda"


def unknown_names(annotation, value, path):
    """Paths of fields that the type does not have under the very name that stands in the document."""
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from unknown_names(annotation, item, f"{path}.{number}")
        return
    if not isinstance(value, dict):
        return
    models, free = models_in(annotation)
    if free or not models:
        return
    each = [list(unknown_to(model, value, path)) for model in models]
    yield from min(each, key=len)


def unknown_to(model, value, path):
    fields = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
    for name, inside in value.items():
        here = f"{path}.{name}".lstrip(".")
        if name in fields:
            yield from unknown_names(fields[name], inside, here)
        else:
            yield here


def models_in(annotation):
    """The models a type is made of, and whether it takes any name, as a map does."""
    if isinstance(annotation, type) and issubclass(annotation, pydantic.RootModel):
        return models_in(annotation.model_fields["root"].annotation)
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return [annotation], False
    if annotation is typing.Any or annotation is dict or typing.get_origin(annotation) is dict:
        return [], True
    models, free = [], False
    for part in typing.get_args(annotation):
        more, freely = models_in(part)
        models, free = models + more, free or freely
    return models, free


def check_trigger(trigger, path):
    if trigger["type"] not in TRIGGERS:
        raise Wrong(f"{path}: no keys are known for triggers of type {trigger['type']}; add them to check_manifests.py")
    must, may = TRIGGERS[trigger["type"]]
    metadata = trigger["metadata"]
    for name in sorted(must - metadata.keys()):
        raise Wrong(f"{path}.metadata: {name} is missing")
    for name, value in metadata.items():
        if name not in must | may:
            raise Wrong(f"{path}.metadata: unknown key {name}")
        if name in NUMBERS and not re.fullmatch(r"\d+(\.\d+)?", value):
            raise Wrong(f"{path}.metadata.{name}: {value} is not a number")
        if name in FLAGS and value not in ("true", "false"):
            raise Wrong(f"{path}.metadata.{name}: {value} is neither true nor false")


# --- what documents call each other by ---


def check_references(documents, is_deployed):
    """Everything a pod refers to is rendered too, and every selector finds a pod. `is_deployed`: secrets come from elsewhere."""
    known = {(document["kind"], document["metadata"]["name"]): document for document in documents}
    templates = [document["spec"]["template"] for document in documents if "template" in document.get("spec", {})]
    for document in documents:
        try:
            spec = document.get("spec", {})
            if "template" in spec:
                check_pod(spec, known, is_deployed)
            for selector in selectors(document["kind"], spec):
                if not any(matches(selector, template["metadata"]["labels"]) for template in templates):
                    raise Wrong(f"no pod has the labels {selector}")
            if document["kind"] == "ScaledObject":
                check_target(document, known)
        except Wrong as wrong:
            raise Wrong(f"{name_of(document)}: {wrong}") from wrong


def check_pod(spec, known, is_deployed):
    pod = spec["template"]["spec"]
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    volumes |= {claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", [])}
    for kind, name, key in references(pod):
        if kind == "Secret" and is_deployed and (kind, name) not in known:
            continue
        target = known.get((kind, name)) or refuse(f"{kind} {name} is not rendered")
        if key and key not in {**target.get("data", {}), **target.get("stringData", {})}:
            raise Wrong(f"{kind} {name} has no key {key}")
    for container in pod["containers"]:
        ports = {port.get("name") for port in container.get("ports", [])}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            port = container.get(probe, {}).get("httpGet", {}).get("port")
            if isinstance(port, str) and port not in ports:
                raise Wrong(f"{probe} asks port {port}, which {container['name']} does not name")
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                raise Wrong(f"{container['name']} mounts {mount['name']}, which is no volume")
        for value in (entry.get("value", "") for entry in container.get("env", [])):
            check_expansions(value, container)


def references(pod):
    if "priorityClassName" in pod:
        yield "PriorityClass", pod["priorityClassName"], None
    for volume in pod.get("volumes", []):
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"], None
        if "secret" in volume and not volume["secret"].get("optional"):
            for item in volume["secret"].get("items", [{"key": None}]):
                yield "Secret", volume["secret"]["secretName"], item["key"]
        for source in volume.get("projected", {}).get("sources", []):
            for field, kind in (("secret", "Secret"), ("configMap", "ConfigMap")):
                for item in source.get(field, {}).get("items", [{"key": None}]) if field in source else ():
                    yield kind, source[field]["name"], item["key"]
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"], None
    for container in pod["containers"]:
        for entry in container.get("env", []):
            source = entry.get("valueFrom", {})
            for field, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
                if field in source:
                    yield kind, source[field]["name"], source[field]["key"]


def check_expansions(value, container):
    """Kubernetes puts a variable in only if it stands further up."""
    entries = container["env"]
    end = next(number for number, entry in enumerate(entries) if entry.get("value") == value) if value else 0
    before = {entry["name"] for entry in entries[:end]}
    for name in re.findall(r"\$\((\w+)\)", value):
        if name not in before:
            raise Wrong(f"{value}: {name} is not among the variables further up")


def selectors(kind, spec):
    if kind == "Service" and spec.get("selector"):
        yield {"matchLabels": spec["selector"]}
    if kind in ("Deployment", "StatefulSet", "PodDisruptionBudget"):
        yield spec["selector"]
    if kind == "NetworkPolicy":
        yield spec["podSelector"]
        for rule in spec.get("ingress", []) + spec.get("egress", []):
            for peer in rule.get("from", []) + rule.get("to", []):
                if "podSelector" in peer and "namespaceSelector" not in peer:
                    yield peer["podSelector"]


def check_target(document, known):
    name = document["spec"]["scaleTargetRef"]["name"]
    target = known.get(("Deployment", name)) or refuse(f"Deployment {name} is not rendered")
    if "replicas" in target["spec"]:
        raise Wrong(f"Deployment {name} says how many replicas there are, against which it would scale")


def check_promises(document):
    """What every pod has. It comes from components, and one that misses its pods changes nothing, silently."""
    template = document.get("spec", {}).get("template")
    if not template:
        return
    pod = template["spec"]
    role = template["metadata"]["labels"]["app.kubernetes.io/component"]
    promised = [
        ("has no priority", pod.get("priorityClassName")),
        ("gets variables of every service", pod.get("enableServiceLinks") is False),
    ]
    for container in containers(pod):
        own = container.get("resources", {})
        promised += [
            ("has no requests or no limits", all({"cpu", "memory"} <= own.get(of, {}).keys() for of in ("requests", "limits"))),
            ("is not probed", role == "setup" or {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys()),
        ]
    if role == "worker":
        promised += [
            ("is not given time to finish", pod.get("terminationGracePeriodSeconds", 30) >= 60),
            ("is not scraped", template["metadata"].get("annotations", {}).get("prometheus.io/scrape") == "true"),
        ]
    for broken in (why for why, kept in promised if not kept):
        raise Wrong(f"a pod {broken}")


def check_words(value, path=()):
    """Words that stand where the cluster knows a few."""
    if isinstance(value, list):
        for item in value:
            check_words(item, path)
    elif isinstance(value, dict):
        for name, inside in value.items():
            check_words(inside, (*path, name))
    elif isinstance(value, str) and path:
        allowed = WORDS.get(path[-1]) or WORDS.get(".".join(path[-2:]))
        if allowed and value not in allowed and "data" not in path:
            raise Wrong(f"{'.'.join(path)}: {value} is none of {', '.join(sorted(allowed))}")


def refuse(why):
    raise Wrong(why)


# --- files that must agree ---


def check_agreement(deploy):
    """kustomize cannot reach outside its folder, so some files are there twice."""
    cloud, edge = deploy / "k8s/overlays/cloud", deploy / "k8s/overlays/edge"
    same_lines(deploy / "nats/cloud.conf", cloud / "nats.conf", {'http: "0.0.0.0:8222"': 'http: "127.0.0.1:8222"'})
    name_of_site = {"$SITE": "reef", "$CAMERA_SUBJECT": '"image.reef.cam1"', "$CAMERAS_SUBJECT": '"image.reef.*"'}
    same_versions(deploy)
    same_lines(deploy / "nats/site.conf", edge / "nats.conf", name_of_site)
    same_settings(deploy / "settings/cloud.toml", cloud / "cloud.toml", {"nats.url"})
    same_settings(deploy / "settings/site.toml", edge / "site.toml", {"site", "nats.url", "trainer.work"})


def same_lines(original, copy, replaced):
    text = copy.read_text()
    for here, there in replaced.items():
        if here not in text:
            raise Wrong(f"{copy}: {here} is gone, by which it differed from {original}")
        text = text.replace(here, there)
    wanted, found = meaning(original.read_text()), meaning(text)
    for line in wanted + found:
        if wanted.count(line) != found.count(line):
            where = copy if line in wanted else original
            raise Wrong(f"{copy} does not agree with {original}: {where} lacks the line {line}")


def same_versions(deploy):
    """The nats-server of the files is the one that the tests run against."""
    tested = re.search(r"^nats_version=(\S+)$", (deploy / "fetch-runtime.sh").read_text(), re.MULTILINE)[1]
    overlays = [f"k8s/overlays/{overlay}/kustomization.yaml" for overlay in ("cloud", "edge")]
    for path in ["compose.yaml", "k8s/components/nats/statefulset.yaml", *overlays]:
        found = re.findall(r"\bnats(?::|\n    newTag: )(\d[^\s@-]*)-alpine", (deploy / path).read_text())
        if set(found) != {tested}:
            raise Wrong(f"{path} has nats-server {found}, deploy/fetch-runtime.sh {tested}")


def meaning(text):
    """Lines without comments and without the spaces between words."""
    bare = (re.sub(r'("[^"]*")|#.*', lambda found: found[1] or "", line) for line in text.splitlines())
    return [" ".join(line.split()) for line in bare if line.strip()]


def same_settings(original, copy, differ):
    wanted, found = flat(tomllib.loads(original.read_text())), flat(tomllib.loads(copy.read_text()))
    for key in sorted(wanted.keys() | found.keys()):
        if wanted.get(key) != found.get(key) and key not in differ:
            raise Wrong(f"{copy} does not agree with {original}: {key} is {found.get(key)}, not {wanted.get(key)}")


def flat(table, path=""):
    keys = {}
    for name, value in table.items():
        keys.update(flat(value, f"{path}{name}.") if isinstance(value, dict) else {f"{path}{name}": value})
    return keys


# --- all of it ---


def check(path, is_pinned):
    """Every document of a rendered file; how many there are."""
    documents = list(yaml.safe_load_all(path.read_text()))
    checked = 0
    for document in documents:
        version = document.get("apiVersion")
        try:
            if version == KEDA:
                by = check_keda(document)
            elif version in BUILT_IN:
                by = check_built_in(document)
            else:
                raise Wrong(f"nobody here knows apiVersion {version}")
            check_words(document)
            check_promises(document)
        except Wrong as wrong:
            raise Wrong(f"{path.name}: {name_of(document)}: {wrong}") from wrong
        checked += 1
        print(f"ok  {path.stem:5}  {name_of(document):45}  {by}")
    # Lines that look like documents, counted without the parser that read them.
    written = len(re.findall(r"^kind:", path.read_text(), re.MULTILINE))
    if not checked == len(documents) == written:
        raise Wrong(f"{path.name}: {written} documents were rendered, {checked} were checked")
    try:
        check_references(documents, is_pinned)
        check_rights(documents)
        check_network(documents, path.stem)
        check_passwords(documents)
        check_encryption(documents, tomllib.loads)
        check_images(images_of(documents), is_pinned)
        broken = prove(documents, path.stem) + prove_encryption(documents, tomllib.loads)
        print(f"ok  {path.stem:5}  {broken} broken promises were noticed")
    except Wrong as wrong:
        raise Wrong(f"{path.name}: {wrong}") from wrong
    return checked


def check_server_files(deploy):
    """Every configuration of nats-server, and that what is broken in it would be noticed; how much was broken."""
    shipped = {f"./nats/{path.name}": path.read_text() for path in sorted((deploy / "nats").glob("*.conf"))}
    texts = {name: (text, False) for name, text in shipped.items()}
    for overlay in ("cloud", "edge"):
        # In the cluster of the cloud its pages are for the namespace.
        texts[f"k8s/{overlay}"] = ((deploy / f"k8s/overlays/{overlay}/nats.conf").read_text(), overlay == "cloud")
    compose = yaml.safe_load((deploy / "compose.yaml").read_text())
    check_compose_encryption(compose, shipped)
    return prove_servers(texts) + prove_compose(compose, shipped)


def write_server_files(path, folder):
    """What nats-server finds in its folder, as the pod has it; certificates only where they have been put in."""
    for document in yaml.safe_load_all(path.read_text()):
        data = document.get("data") or {}
        if "server.conf" in data:
            (folder / "server.conf").write_text(data["server.conf"])
        if "passwords.conf" in data:
            (folder / "passwords.conf").write_bytes(base64.b64decode(data["passwords.conf"]))
            for name in {"server.pem", "server.key", "ca.pem"} & data.keys():
                value = base64.b64decode(data[name])
                if value.startswith(b"-----BEGIN"):
                    (folder / name).write_bytes(value)


def main():
    if sys.argv[1] == "--server-files":
        return write_server_files(*map(Path, sys.argv[2:]))
    deploy, rendered, mode = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    is_pinned = mode == ["--pinned"]
    compose = yaml.safe_load((deploy / "compose.yaml").read_text())
    try:
        places = ("cloud", "edge", "cloud-with-object-store")
        total = sum(check(rendered / f"{place}.yaml", is_pinned) for place in places)
        check_agreement(deploy)
        check_compose(compose, (deploy / "Containerfile").read_text())
        print(f"ok  nats   {check_server_files(deploy)} ways to speak in the clear were noticed")
        # Ours is built by compose itself, and named in the environment.
        check_images((one["image"] for one in compose["services"].values() if "$" not in one["image"]), is_pinned=False)
    except Wrong as wrong:
        sys.exit(f"check-manifests: {wrong}")
    # For whoever looks at more than schemas, and reads no YAML.
    for overlay in ("cloud", "edge"):
        documents = list(yaml.safe_load_all((rendered / f"{overlay}.yaml").read_text()))
        (rendered / f"{overlay}.json").write_text(json.dumps(documents))
    (rendered / "compose.json").write_text(json.dumps([compose]))
    print(f"{total} documents checked; names that refer to others, files that must agree, rights and reach of pods, too")


if __name__ == "__main__":
    main()
