"""What pods may do, whom they may reach and what they run; and that a broken promise would be noticed.

Used by check_manifests.py, for compose.yaml as well, as far as the same holds there.
"""

import base64
import copy
import re


class Wrong(Exception):
    """Why a document, or what it refers to, will not do."""


def name_of(document):
    return f"{document['kind']}/{document['metadata']['name']}"


def matches(selector, labels):
    """Whether labels are among those that a selector of any kind means."""
    for expression in selector.get("matchExpressions", []):
        if expression["operator"] != "In":
            raise Wrong(f"nobody here knows the operator {expression['operator']} of a selector")
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return selector.get("matchLabels", {}).items() <= labels.items()


def containers(pod):
    return pod["containers"] + pod.get("initContainers", [])


# --- what pods may do ---

# What the profile `restricted` of Kubernetes takes, and a read-only root besides.
VOLUMES = {"configMap", "downwardAPI", "emptyDir", "persistentVolumeClaim", "projected", "secret"}
# What a site needs beyond the profile: folders and ports of its node.
FOLDERS = {"/var/lib/tributary/nats", "/var/lib/tributary/trainer", "/var/lib/tributary/model"}
PORTS = {4222, 8883}


def check_rights(documents):
    """Every pod, by the same rules that the cluster enforces in the namespace, and by stricter ones where it cannot."""
    (namespace,) = (document for document in documents if document["kind"] == "Namespace")
    levels = {
        mode: namespace["metadata"]["labels"].get(f"pod-security.kubernetes.io/{mode}") for mode in ("enforce", "warn")
    }
    if levels["warn"] != "restricted":
        raise Wrong(f"{name_of(namespace)}: nobody is warned of what is not `restricted`")
    for document in documents:
        if "template" not in document.get("spec", {}):
            continue
        pod = document["spec"]["template"]["spec"]
        for why, kept in rights(pod) + ([] if levels["enforce"] == "privileged" else within_profile(pod)):
            if not kept:
                raise Wrong(f"{name_of(document)}: a pod {why}")
    pods = [document["spec"]["template"]["spec"] for document in documents if "template" in document.get("spec", {})]
    needed = "restricted" if all(kept for pod in pods for _, kept in within_profile(pod)) else "privileged"
    if levels["enforce"] != needed:
        raise Wrong(f"{name_of(namespace)}: what is enforced is {levels['enforce']}, and should be {needed}")


def rights(pod):
    context = pod.get("securityContext", {})
    kept = [
        ("is not kept from running as root", context.get("runAsNonRoot") is True),
        ("has no user of its own", context.get("runAsUser", 0) >= 10000 and context.get("runAsGroup", 0) >= 10000),
        ("has no seccomp profile", context.get("seccompProfile", {}).get("type") == "RuntimeDefault"),
        ("gets a key of the cluster", pod.get("automountServiceAccountToken") is False),
        (
            "shares the node's network or processes",
            not any(pod.get(of) for of in ("hostNetwork", "hostPID", "hostIPC")),
        ),
    ]
    for volume in pod.get("volumes", []):
        kind, folder = next(key for key in volume if key != "name"), volume.get("hostPath", {}).get("path")
        kept.append((f"has a volume of the kind {kind} ({folder})", kind in VOLUMES or folder in FOLDERS))
        if kind in ("secret", "projected"):
            kept.append(("has secrets that others in it may read", volume[kind].get("defaultMode") == 0o440))
            kept.append(("cannot read its secrets", context.get("fsGroup") == context.get("runAsGroup")))
    for container in containers(pod):
        own = container.get("securityContext", {})
        wider = {"runAsNonRoot", "runAsUser", "runAsGroup", "seccompProfile", "procMount"} & own.keys()
        kept += [
            ("may write to its image", own.get("readOnlyRootFilesystem") is True),
            ("may gain rights", own.get("allowPrivilegeEscalation") is False and not own.get("privileged")),
            ("keeps capabilities", own.get("capabilities", {}) == {"drop": ["ALL"]}),
            (f"says otherwise in a container ({', '.join(wider)})", not wider),
            (
                "has ports of the node",
                all(port.get("hostPort") in {None} | PORTS for port in container.get("ports", [])),
            ),
            (
                "has a secret in a variable",
                not any("secretKeyRef" in entry.get("valueFrom", {}) for entry in container.get("env", [])),
            ),
            ("has a secret in a variable", not container.get("envFrom")),
        ]
    return kept


def within_profile(pod):
    """What a site is excused from."""
    volumes = [("has a folder of the node", "hostPath" not in volume) for volume in pod.get("volumes", [])]
    ports = [port for container in containers(pod) for port in container.get("ports", [])]
    return volumes + [("has ports of the node", "hostPort" not in port) for port in ports]


# --- whom pods may reach ---

NAMES = {"pods k8s-app=kube-dns of kube-system:53/UDP", "pods k8s-app=kube-dns of kube-system:53/TCP"}
METRICS = {"monitoring:9464/TCP"}
# By overlay and role: who comes in from beyond the namespace, and who goes out. Within it, workers and what sets up reach
# nats-server, and that is all.
OPEN = {
    "cloud": {
        "worker": (METRICS, NAMES),
        "setup": (set(), NAMES),
        "nats": ({"anybody:7422/TCP", "monitoring:8222/TCP"}, set()),
    },
    "edge": {
        "worker": (METRICS, {"ADDRESS/32:4222/TCP"}),
        "setup": (set(), {"ADDRESS/32:4222/TCP"}),
        "nats": ({"anybody:4222/TCP", "anybody:8883/TCP"}, NAMES | {"anybody:7422/TCP"}),
    },
}
STORE = {"aggregator", "releaser"}
CAMERAS = {"anybody:80/TCP", "anybody:443/TCP", "anybody:554/TCP"}


def check_network(documents, place):
    """What all policies together allow is what the table says, no more and no less."""
    policies = [document["spec"] for document in documents if document["kind"] == "NetworkPolicy"]
    pods = [document["spec"]["template"] for document in documents if "template" in document.get("spec", {})]
    overlay, _, with_store = place.partition("-with-")
    address = next((document["data"]["address"] for document in documents if "address" in document.get("data", {})), "")
    for pod in pods:
        labels = pod["metadata"]["labels"]
        name, role = labels["app.kubernetes.io/name"], labels["app.kubernetes.io/component"]
        incoming, outgoing = ({item.replace("ADDRESS", address) for item in items} for items in OPEN[overlay][role])
        if with_store and name in STORE:
            outgoing |= {"anybody:443/TCP"}
        if name == "grabber":
            outgoing |= CAMERAS
        for direction, wanted in (("Ingress", incoming), ("Egress", outgoing)):
            found = set(beyond(policies, labels, direction))
            if found != wanted:
                raise Wrong(f"{direction.lower()} of {name} is {sorted(found)}, and should be {sorted(wanted)}")
        for other in pods:
            for port in {4222, 8222, 7422, 9464}:
                theirs = other["metadata"]["labels"]
                reaches = allows(policies, labels, theirs, port, "Egress") and allows(
                    policies, theirs, labels, port, "Ingress"
                )
                should = (
                    role in ("worker", "setup") and theirs["app.kubernetes.io/component"] == "nats" and port == 4222
                )
                if reaches != should:
                    raise Wrong(
                        f"{name} {'reaches' if reaches else 'does not reach'} port {port} of {theirs['app.kubernetes.io/name']}"
                    )


def rules(policies, labels, direction):
    """The rules of one direction that hold for a pod; that none would is a failure, for then everything is allowed."""
    mine = [
        policy for policy in policies if direction in policy["policyTypes"] and matches(policy["podSelector"], labels)
    ]
    if not mine:
        raise Wrong(
            f"no policy holds for {direction.lower()} of {labels['app.kubernetes.io/name']}, so everything is allowed"
        )
    for rule in (rule for policy in mine for rule in policy.get(direction.lower()) or []):
        yield rule.get("from", []) + rule.get("to", []), rule.get("ports", [{"port": "any", "protocol": "TCP"}])


def beyond(policies, labels, direction):
    """Who is allowed from or to where this namespace ends."""
    for peers, ports in rules(policies, labels, direction):
        for port in ports:
            for who in [named(peer) for peer in peers] if peers else ["anybody"]:
                if who:
                    yield f"{who}:{port['port']}/{port['protocol']}"


def named(peer):
    if "ipBlock" in peer:
        return peer["ipBlock"]["cidr"]
    if "namespaceSelector" not in peer:
        return None
    namespace = peer["namespaceSelector"].get("matchLabels", {}).get("kubernetes.io/metadata.name", "any namespace")
    labels = peer.get("podSelector", {}).get("matchLabels", {})
    return f"pods {','.join(f'{key}={value}' for key, value in labels.items())} of {namespace}" if labels else namespace


def allows(policies, labels, other, port, direction):
    for peers, ports in rules(policies, labels, direction):
        within = not peers or any(
            "podSelector" in peer and "namespaceSelector" not in peer and matches(peer["podSelector"], other)
            for peer in peers
        )
        if within and any(one["port"] in (port, "any") for one in ports):
            return True
    return False


# --- what is run ---

# Images of others that have no digest here, and why.
WITHOUT_DIGEST = {"nats": "which digest belongs to the version was not seen where it is published"}


def check_images(images, is_pinned):
    """Each says its version; others' say their digest as well. `is_pinned`: ours too, as is right where it is deployed."""
    for image in images:
        name, tag, digest = re.fullmatch(r"(.+?)(?::([^:@/]+))?(?:@(.*))?", image).groups()
        ours = name.rpartition("/")[2] == "tributary"
        if digest and not (re.fullmatch(r"sha256:[0-9a-f]{64}", digest) and len(set(digest)) > 12):
            raise Wrong(f"image {image}: {digest} is no digest")
        if not re.match(r"v?\d+\.\d+\.\d+", tag or ""):
            raise Wrong(f"image {image} does not say its version")
        if not digest and (is_pinned or not ours and name not in WITHOUT_DIGEST):
            raise Wrong(f"image {image} has no digest: `docker buildx imagetools inspect {name}:{tag}` shows it")


def images_of(documents):
    for document in documents:
        for container in containers(document.get("spec", {}).get("template", {}).get("spec", {"containers": []})):
            yield container["image"]


# Who connects to a site's end of the link as well.
AT_THE_LINK = {"courier", "janitor", "site-setup"}


def check_passwords(documents):
    """What a worker says it is, is what nats-server knows it by: both stand in one Secret, and each finds its file."""
    for document in documents:
        pod = document.get("spec", {}).get("template", {}).get("spec", {"containers": []})
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        files = set()
        for container in containers(pod):
            for mount in container.get("volumeMounts", []):
                for item in volumes.get(mount["name"], {}).get("secret", {}).get("items", []):
                    files.add(f"{mount['mountPath']}/{item['path']}")
            named = {
                entry["name"]: entry["value"] for entry in container.get("env", []) if "PASSWORD_FILE" in entry["name"]
            }
            for name, path in named.items():
                if path not in files:
                    raise Wrong(f"{name_of(document)}: {name} is {path}, where no secret is mounted")
            wanted = {"TRIBUTARY_NATS__PASSWORD_FILE"} if "tributary" in container["image"] else set()
            if document["metadata"]["name"] in AT_THE_LINK:
                wanted.add("TRIBUTARY_NATS__LINK_PASSWORD_FILE")
            if named.keys() != wanted:
                raise Wrong(f"{name_of(document)}: passwords are {sorted(named)}, and should be {sorted(wanted)}")
    for document in documents:
        if document["kind"] != "Secret":
            continue
        values = {key: base64.b64decode(value).decode() for key, value in document["data"].items()}
        known = dict(re.findall(r'^(\w+): "(.*)"$', values.pop("passwords.conf"), re.MULTILINE))
        for key, value in values.items():
            # Certificates and the key of one; check_servers.py.
            if key.endswith((".pem", ".key")):
                continue
            if known.get(f"{key.upper()}_PASSWORD") != value:
                raise Wrong(
                    f"{name_of(document)}: {key} is another password than {key.upper()}_PASSWORD in passwords.conf"
                )


def check_compose(compose, containerfile):
    """Every service of compose.yaml, by the rules for pods; ours run as the user that their image names."""
    if not re.fullmatch(
        r"[1-9]\d+:[1-9]\d+", (re.findall(r"^USER (.*)$", containerfile, re.MULTILINE) or ["root"])[-1]
    ):
        raise Wrong("Containerfile: the image runs as root, or as a name that Kubernetes cannot tell from it")
    for name, service in compose["services"].items():
        ours = "tributary" in service["image"]
        variables = service.get("environment", {})
        promised = [
            ("may write to its image", service.get("read_only") is True),
            ("keeps capabilities", service.get("cap_drop") == ["ALL"] and not service.get("cap_add")),
            ("may gain rights", "no-new-privileges:true" in service.get("security_opt", [])),
            ("runs as root", ours or re.match(r"[1-9]\d+:[1-9]?\d+", str(service.get("user")))),
            ("has more than it should", not {"privileged", "devices", "pid", "ipc"} & service.keys()),
            (
                "has a secret in a variable",
                not any("PASSWORD" in key and not key.endswith("_FILE") for key in variables),
            ),
            ("has a secret in a variable", not re.search(r"PASSWORD|SECRET", " ".join(map(str, variables.values())))),
        ]
        for secret in service.get("secrets", []):
            source = secret if isinstance(secret, str) else secret["source"]
            promised.append((f"uses {source}, which is no secret", source in compose["secrets"]))
        for key, path in variables.items():
            if key.endswith("_FILE") and "PASSWORD" in key:
                promised.append((f"has no {path}", path.removeprefix("/run/secrets/") in service.get("secrets", [])))
        for why, kept in promised:
            if not kept:
                raise Wrong(f"compose.yaml: {name} {why}")


# --- that it would be noticed ---


def prove(documents, place):
    """Breaks every promise about rights and reach once; how many were broken. One that passes all the same is a failure."""
    broken = 0
    for number, document in enumerate(documents):
        for what, change in breakages(document):
            damaged = copy.deepcopy(documents)
            change(damaged[number])
            try:
                check_rights(damaged)
                check_network(damaged, place)
            except Wrong:
                broken += 1
                continue
            raise Wrong(f"{name_of(document)}: {what} would not be noticed")
    return broken


def breakages(document):
    if document["kind"] == "Namespace":
        for mode in ("enforce", "warn"):
            yield f"that {mode} is gone", lambda it, mode=mode: it["metadata"]["labels"].pop(
                f"pod-security.kubernetes.io/{mode}"
            )
    if document["kind"] == "NetworkPolicy" and document["metadata"]["name"] != "nothing-else":
        for way in document["spec"]["policyTypes"]:
            yield f"that everything is allowed ({way})", lambda it, way=way: it["spec"].update({way.lower(): [{}]})
            # At a site anybody may come to nats-server, so that policy adds nothing there.
            if document["metadata"]["name"] != "nats":
                yield f"that nothing is allowed ({way})", lambda it, way=way: it["spec"].update({way.lower(): []})
    if document["kind"] == "NetworkPolicy" and document["metadata"]["name"] == "nothing-else":
        yield "that it holds for nobody", lambda it: it["spec"].update(podSelector={"matchLabels": {"no": "body"}})
        yield "that it allows everything", lambda it: it["spec"].update(egress=[{}])
    if "template" not in document.get("spec", {}):
        return
    pod = lambda it: it["spec"]["template"]["spec"]
    for key in ("runAsNonRoot", "runAsUser", "runAsGroup", "seccompProfile"):
        yield f"that {key} is gone", lambda it, key=key: pod(it)["securityContext"].pop(key)
    yield "that it gets a key of the cluster", lambda it: pod(it).pop("automountServiceAccountToken")
    yield "the node's network", lambda it: pod(it).update(hostNetwork=True)
    yield "a folder of the node", lambda it: pod(it).setdefault("volumes", []).append(
        {"name": "x", "hostPath": {"path": "/"}}
    )
    yield "a socket of the node", lambda it: pod(it)["volumes"].append(
        {"name": "x", "hostPath": {"path": "/run/containerd.sock"}}
    )
    for key in ("readOnlyRootFilesystem", "allowPrivilegeEscalation", "capabilities"):
        yield f"that {key} is gone", lambda it, key=key: pod(it)["containers"][0]["securityContext"].pop(key)
    yield "a capability", lambda it: pod(it)["containers"][0]["securityContext"]["capabilities"].update(
        add=["NET_ADMIN"]
    )
    yield "root in a container", lambda it: pod(it)["containers"][0]["securityContext"].update(runAsUser=0)
    yield "a second container", lambda it: pod(it)["containers"].append({"name": "x", "securityContext": {}})
    yield "a container before it", lambda it: pod(it).update(initContainers=[{"name": "x"}])
    secret = {"name": "X", "valueFrom": {"secretKeyRef": {"name": "x", "key": "x"}}}
    yield "a secret in a variable", lambda it: pod(it)["containers"][0].setdefault("env", []).append(secret)
    yield "a port of the node", lambda it: pod(it)["containers"][0].setdefault("ports", []).append(
        {"containerPort": 1, "hostPort": 22}
    )
    for at, volume in enumerate(document["spec"]["template"]["spec"].get("volumes", [])):
        if "secret" in volume or "projected" in volume:
            kind = "secret" if "secret" in volume else "projected"
            yield "that others may read a secret", lambda it, at=at, kind=kind: pod(it)["volumes"][at][kind].pop(
                "defaultMode"
            )
