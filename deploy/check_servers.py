"""That nothing is said in the clear beyond a machine: each configuration of nats-server, and whoever connects to it.

Used by check_manifests.py, for compose.yaml as well.
"""

import base64
import copy
import re

from check_pods import Wrong, containers, name_of

# --- reading a configuration ---

TOKENS = re.compile(r'\s+|#[^\n]*|//[^\n]*|(?P<text>"[^"\n]*")|(?P<mark>[][{},:=])|(?P<word>[^\s"\'#{}\[\],:=]+)')


def read(text):
    """A configuration as nested maps and lists, with keys in lower case. Only as much of the format as our files use."""
    tokens, at = [], 0
    while at < len(text):
        found = TOKENS.match(text, at)
        if not found:
            raise Wrong(f"nobody here can read {text[at : at + 20]!r}")
        at = found.end()
        if found.lastgroup:
            tokens.append(found[found.lastgroup])
    tokens.reverse()
    return read_map(tokens, None)


def read_map(tokens, end):
    settings = {}
    while (token := take(tokens, end)) != end:
        if token == ",":
            continue
        key = token.strip('"').lower()
        if tokens and tokens[-1] in (":", "="):
            tokens.pop()
        value = read_value(take(tokens, end), tokens)
        if key in settings:
            raise Wrong(f"{key} is there twice")
        if key == "include" and value != "passwords.conf":
            raise Wrong(f"it includes {value}, which nobody here reads")
        settings[key] = value
    return settings


def read_value(token, tokens):
    if token == "{":
        return read_map(tokens, "}")
    if token != "[":
        return token.strip('"')
    items = []
    while (token := take(tokens, "]")) != "]":
        if token != ",":
            items.append(read_value(token, tokens))
    return items


def take(tokens, end):
    if tokens:
        return tokens.pop()
    if end is not None:
        raise Wrong(f"{end} is missing at the end")
    return None


# --- what a server may do in the clear ---

BLOCKS = {"leafnodes", "leaf", "mqtt", "websocket", "ws", "cluster", "gateway"}
PAGES = {"http", "http_port", "monitor_port"}
UNHEARD_OF = {"prof_port", "profile_port", "debug_port"}
LOOPBACK = {"127.0.0.1", "localhost", "[::1]", "::1"}


def check_server(settings, shows_pages=False):
    """A server without a listener beyond loopback that takes what is not encrypted. `shows_pages`: its monitoring pages are
    for the namespace, by a network policy."""
    check_listener("clients", settings)
    for name in BLOCKS & settings.keys():
        if {"listen", "port"} & settings[name].keys():
            check_listener(name, settings[name])
    for name in PAGES & settings.keys():
        if not shows_pages and host_of(settings[name]) not in LOOPBACK:
            raise Wrong(f"{name}: the monitoring pages, which ask nobody for a password, are shown beyond loopback")
    for name in UNHEARD_OF & settings.keys():
        raise Wrong(f"{name}: it listens for debuggers")
    leaves = settings.get("leafnodes", settings.get("leaf", {}))
    for remote in leaves.get("remotes", []):
        check_remote(remote)


def check_listener(name, block):
    host = host_of(block["listen"]) if "listen" in block else block.get("host", block.get("net", "0.0.0.0"))
    if host in LOOPBACK:
        return
    tls = block.get("tls", {})
    promised = [
        ("without tls", "tls" in block),
        ("without a certificate", {"cert_file", "key_file"} <= tls.keys()),
        ("and takes what is not encrypted", not is_on(block, "allow_non_tls") and not is_on(block, "no_tls")),
        ("and trusts anybody", not is_on(tls, "insecure")),
        ("and speaks before the handshake", name not in ("leafnodes", "leaf") or is_on(tls, "handshake_first")),
    ]
    for why in (why for why, kept in promised if not kept):
        raise Wrong(f"{name}: it listens on {host} {why}")


def check_remote(remote):
    tls = remote.get("tls", {})
    urls = [remote["url"]] if "url" in remote else remote["urls"]
    promised = [
        ("is not encrypted", "tls" in remote and is_on(tls, "handshake_first")),
        ("trusts whomever the system trusts", "ca_file" in tls),
        ("trusts anybody", not is_on(tls, "insecure")),
        # What a variable stands for is in passwords.conf.
        ("has another scheme than tls", all(url.startswith(("tls://", "$")) for url in urls)),
    ]
    for why in (why for why, kept in promised if not kept):
        raise Wrong(f"leafnodes: a link to another server {why}")


def host_of(listen):
    return listen.rpartition(":")[0] or "0.0.0.0"


def ports_of(settings):
    """Ports that are listened on beyond loopback."""
    blocks = [settings] + [settings[name] for name in BLOCKS & settings.keys()]
    listens = [block["listen"] for block in blocks if "listen" in block] + [settings.get("http", "127.0.0.1:8222")]
    return {int(listen.rpartition(":")[2]) for listen in listens if host_of(listen) not in LOOPBACK}


def is_on(block, key):
    return str(block.get(key, "false")).lower() in ("true", "yes", "on")


def files_named(settings):
    """Files that a configuration names for its certificates."""
    if isinstance(settings, list):
        return {path for item in settings for path in files_named(item)}
    if not isinstance(settings, dict):
        return set()
    own = {settings[key] for key in ("cert_file", "key_file", "ca_file") if key in settings}
    return own.union(*map(files_named, settings.values()))


# --- who brings the files, and who connects ---


def check_encryption(documents, settings_of):
    """Servers of rendered documents, the files that they name, and that workers connect to nothing else. `settings_of`: reads
    a settings file."""
    servers = {}
    urls = {}
    for document in documents:
        for name, text in document.get("data", {}).items() if document["kind"] == "ConfigMap" else ():
            if name == "server.conf":
                servers[document["metadata"]["name"]] = read(text)
            if name.endswith(".toml"):
                urls[document["metadata"]["name"]] = settings_of(text).get("nats", {}).get("url")
    if not servers:
        raise Wrong("no configuration of nats-server is rendered")
    policies = {document["metadata"]["name"] for document in documents if document["kind"] == "NetworkPolicy"}
    for name, settings in servers.items():
        try:
            check_server(settings, shows_pages=name.startswith("cloud-nats") and "nothing-else" in policies)
        except Wrong as wrong:
            raise Wrong(f"ConfigMap/{name}: {wrong}") from wrong
    for document in documents:
        if "template" in document.get("spec", {}):
            try:
                check_pod(document["spec"]["template"]["spec"], servers, urls)
            except Wrong as wrong:
                raise Wrong(f"{name_of(document)}: {wrong}") from wrong
        if document["kind"] == "Secret":
            check_secret(document)


# Secrets of which a role is given all, as nobody else is given any of it.
WHOLE = {"camera-passwords"}


def check_pod(pod, servers, urls):
    sources = {volume["name"]: list(sources_of(volume)) for volume in pod.get("volumes", [])}
    for container in containers(pod):
        files, maps = set(), set()
        for mount in container.get("volumeMounts", []):
            for kind, source in sources.get(mount["name"], []):
                maps |= {source["name"]} if kind == "configMap" else set()
                files |= {f"{mount['mountPath']}/{item['path']}" for item in source.get("items", [])}
                if kind == "secret" and "items" not in source and source["secretName"] not in WHOLE:
                    raise Wrong(f"{container['name']} is given all of a secret, which may have more in it than it needs")
        for settings in (settings for name, settings in servers.items() if name in maps):
            for path in sorted(files_named(settings) - files):
                raise Wrong(f"its configuration names {path}, where nothing is mounted")
            ports = {port["containerPort"] for port in container.get("ports", [])}
            if ports != ports_of(settings):
                raise Wrong(f"its configuration listens on {sorted(ports_of(settings))}, its ports are {sorted(ports)}")
        if "tributary" in container["image"]:
            variables = {entry["name"]: entry.get("value", "") for entry in container.get("env", [])}
            given = [url for name, url in urls.items() if name in maps and url]
            check_client(variables, given, files)
            for path in files:
                if path.endswith(".key"):
                    raise Wrong(f"it is given {path}, which is a server's")


def sources_of(volume):
    for source in volume.get("projected", {}).get("sources", [volume]):
        if "configMap" in source:
            yield "configMap", source["configMap"]
        if "secret" in source:
            yield "secret", source["secret"]


def check_client(variables, given, files):
    """A worker that is told to speak to nobody but a server that it knows by its certificate."""
    urls = [variables["TRIBUTARY_NATS__URL"]] if "TRIBUTARY_NATS__URL" in variables else given
    if not urls or not all(url.startswith("tls://") for url in urls):
        raise Wrong(f"it connects to {', '.join(urls) or 'the default'}, which is not encrypted")
    authority = variables.get("TRIBUTARY_NATS__CA")
    if authority not in files:
        raise Wrong(f"TRIBUTARY_NATS__CA is {authority}, where no authority is mounted")


def check_secret(document):
    values = {key: base64.b64decode(value).decode() for key, value in document["data"].items()}
    if "ca.key" in values:
        raise Wrong(f"{name_of(document)}: the authority's key is in it, which no server needs")
    for key, value in values.items():
        if key.endswith(".pem") and "PRIVATE KEY" in value:
            raise Wrong(f"{name_of(document)}: {key} holds a key")
    for line in values.get("passwords.conf", "").splitlines():
        variable = re.fullmatch(r'([A-Z_]+): "(.*)"', line)
        if not variable:
            raise Wrong(f"{name_of(document)}: passwords.conf says more than passwords")
        if variable[1] == "CLOUD_LEAF_URL" and not variable[2].startswith("tls://"):
            raise Wrong(f"{name_of(document)}: CLOUD_LEAF_URL has another scheme than tls")


def check_compose_encryption(compose, server_files):
    """The same of compose.yaml. `server_files`: texts of configurations by the path that compose has for them."""
    for name, source in compose["secrets"].items():
        if source["file"].endswith("ca.key"):
            raise Wrong(f"compose.yaml: the secret {name} is the authority's key, which no server needs")
    for name, service in compose["services"].items():
        try:
            secrets = service.get("secrets", [])
            short = {f"/run/secrets/{secret}" for secret in secrets if isinstance(secret, str)}
            files = short | {secret["target"] for secret in secrets if not isinstance(secret, str)}
            volumes = [volume.split(":")[0] for volume in service.get("volumes", [])]
            for settings in (read(server_files[path]) for path in volumes if path in server_files):
                check_server(settings)
                for path in sorted(files_named(settings) - files):
                    raise Wrong(f"its configuration names {path}, where nothing is mounted")
            if "TRIBUTARY_NATS__URL" in service.get("environment", {}):
                check_client(service["environment"], [], files)
                if any(path.endswith(".key") for path in files):
                    raise Wrong("it is given a server's key")
        except Wrong as wrong:
            raise Wrong(f"compose.yaml: {name}: {wrong}") from wrong


# --- that it would be noticed ---


def prove_servers(texts):
    """Breaks every promise of each configuration once; how many were broken. `texts`: by what they are called."""
    broken = 0
    for name, (text, shows_pages) in texts.items():
        settings = read(text)
        check_server(settings, shows_pages)
        for what, change in server_breakages(settings, shows_pages):
            damaged = copy.deepcopy(settings)
            change(damaged)
            if is_noticed(lambda: check_server(damaged, shows_pages)):
                broken += 1
                continue
            raise Wrong(f"{name}: {what} would not be noticed")
    return broken


def server_breakages(settings, shows_pages):
    listeners = [()] + [(name,) for name in sorted(BLOCKS & settings.keys()) if "listen" in settings[name]]
    at = lambda it, path: it[path[0]] if path else it
    for path in listeners:
        of = path[0] if path else "clients"
        yield f"that {of} come without tls", lambda it, path=path: at(it, path).pop("tls")
        yield f"that {of} find no certificate", lambda it, path=path: at(it, path)["tls"].pop("cert_file")
        yield f"that {of} find no key", lambda it, path=path: at(it, path)["tls"].pop("key_file")
    yield "that clients may leave tls out", lambda it: it.update(allow_non_tls="true")
    yield "an address that is the default", lambda it: (it.pop("listen"), it.pop("tls"))
    yield "another listener", lambda it: it.update(websocket={"port": "8080", "no_tls": "true"})
    yield "a cluster", lambda it: it.update(cluster={"listen": "0.0.0.0:6222"})
    yield "a door for debuggers", lambda it: it.update(prof_port="65432")
    if not shows_pages:
        yield "pages for everybody", lambda it: it.update(http="0.0.0.0:8222")
        yield "pages on every address", lambda it: it.update(http_port="8222")
    leaves = settings["leafnodes"]
    if "listen" in leaves:
        yield "leaves that are greeted in the clear", lambda it: it["leafnodes"]["tls"].pop("handshake_first")
    for number in range(len(leaves.get("remotes", []))):
        remote = lambda it, number=number: it["leafnodes"]["remotes"][number]
        yield "a link in the clear", lambda it: remote(it).pop("tls")
        yield "a link to whomever the system trusts", lambda it: remote(it)["tls"].pop("ca_file")
        yield "a link to anybody", lambda it: remote(it)["tls"].update(insecure="true")
        yield "an address in the clear", lambda it: remote(it).update(url="nats-leaf://hub.example:7422")


def prove_encryption(documents, settings_of):
    """The same of what is mounted into pods, and of what workers are told."""
    broken = 0
    for number, document in enumerate(documents):
        for what, change in pod_breakages(document):
            damaged = copy.deepcopy(documents)
            change(damaged[number])
            if is_noticed(lambda: check_encryption(damaged, settings_of)):
                broken += 1
                continue
            raise Wrong(f"{name_of(document)}: {what} would not be noticed")
    return broken


def pod_breakages(document):
    encoded = lambda text: base64.b64encode(text.encode()).decode()
    if document["kind"] == "Secret":
        yield "the authority's key", lambda it: it["data"].update({"ca.key": encoded("key")})
        yield "a key among certificates", lambda it: it["data"].update({"ca.pem": encoded("-----BEGIN PRIVATE KEY-----")})
        yield "a setting among passwords", lambda it: it["data"].update(
            {"passwords.conf": encoded("allow_non_tls: true")}
        )
        if b"CLOUD_LEAF_URL" in base64.b64decode(document["data"]["passwords.conf"]):
            yield "a link in the clear", lambda it: it["data"].update(
                {"passwords.conf": encoded('CLOUD_LEAF_URL: "nats-leaf://reef:x@hub:7422"')}
            )
    if document["kind"] == "ConfigMap" and "server.conf" in document["data"]:
        yield "that clients come without tls", lambda it: it["data"].update(
            {"server.conf": re.sub(r"^tls .*$", "", it["data"]["server.conf"], flags=re.MULTILINE)}
        )
    if "template" not in document.get("spec", {}):
        return
    pod = lambda it: it["spec"]["template"]["spec"]
    own = document["spec"]["template"]["spec"]
    if document["kind"] == "StatefulSet":
        yield "a port that nobody listens on", lambda it: pod(it)["containers"][0]["ports"].pop()
    for at, volume in enumerate(own.get("volumes", [])):
        for number, (kind, source) in enumerate(sources_of(volume)):
            for place, item in enumerate(source.get("items", [])):
                if kind == "secret" and item["path"].endswith((".pem", ".key")):
                    items = lambda it, at=at, number=number: list(sources_of(pod(it)["volumes"][at]))[number][1]["items"]
                    yield f"that {item['path']} is missing", lambda it, items=items, place=place: items(it).pop(place)
    for at, container in enumerate(own["containers"]):
        if "tributary" in container["image"]:
            env = lambda it, at=at: pod(it)["containers"][at].setdefault("env", [])
            yield "an address in the clear", lambda it, env=env: env(it).append(
                {"name": "TRIBUTARY_NATS__URL", "value": "nats://cloud-nats:4222"}
            )
            yield "another authority", lambda it, env=env: env(it).append(
                {"name": "TRIBUTARY_NATS__CA", "value": "/etc/ssl/cert.pem"}
            )


def prove_compose(compose, server_files):
    broken = 0
    for what, change in compose_breakages(compose):
        damaged = copy.deepcopy(compose)
        change(damaged)
        if is_noticed(lambda: check_compose_encryption(damaged, server_files)):
            broken += 1
            continue
        raise Wrong(f"compose.yaml: {what} would not be noticed")
    return broken


def compose_breakages(compose):
    yield "the authority's key", lambda it: it["secrets"].update({"x": {"file": "./secrets/ca.key"}})
    for name, service in compose["services"].items():
        of = lambda it, name=name: it["services"][name]
        for number, secret in enumerate(service.get("secrets", [])):
            target = secret if isinstance(secret, str) else secret["target"]
            if target.endswith((".pem", ".key")):
                yield f"that {name} has no {target}", lambda it, of=of, number=number: of(it)["secrets"].pop(number)
        if "TRIBUTARY_NATS__URL" in service.get("environment", {}):
            yield f"that {name} connects in the clear", lambda it, of=of: of(it)["environment"].update(
                TRIBUTARY_NATS__URL="nats://cloud-nats:4222"
            )
            yield f"that {name} has a server's key", lambda it, of=of: of(it)["secrets"].append("site-nats.key")


def is_noticed(check):
    try:
        check()
    except Wrong:
        return True
    return False
