#!/usr/bin/python3
"""A camera over RTSP for tests: GStreamer's server, with faults on request.

    rtsp_server.py [--user USER --password PASSWORD] [--port PORT] [--mount NAME=CODEC,PROFILE,GROUP,WIDTHxHEIGHT,RATE …]
                   [--mount NAME=loop,FILE,RATE …]

CODEC is h264, h265 or jpeg; PROFILE is baseline, main or high (with pictures out of order) for h264, and plain or reordered
for h265; GROUP is the number of pictures from one key frame to the next; RATE is in pictures a second. Each client gets a
stream of its own, which begins with a key frame. Video goes over TCP alone.

A loop sends the coded pictures of FILE (H.264, a bare stream that begins with a key frame) again and again, and so costs
little with many clients. Each of them comes in the middle, as at a camera that has run for long, and at another place.

When it is ready it prints one line, `READY RTSP_PORT CONTROL_PORT`. It ends when its standard input is closed. GET requests
to the control port bring faults, for the clients of one mount:

    /stall/NAME        no more pictures, while RTSP and RTCP answer
    /flow/NAME         pictures again
    /size/NAME/WxH     pictures of another size in the running stream, not of a loop
    /drop              the sessions of all clients end
    /clients           how many clients there are

It needs Debian's packages gir1.2-gst-rtsp-server-1.0, python3-gi and gstreamer1.0-plugins-{base,good,ugly,bad}
(deploy/fetch-cameras.sh), and so Debian's own Python: others do not see python3-gi.
"""

import argparse
import http.server
import itertools
import os
import sys
import threading
import time

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402

ROLE = "viewer"
# Fraction of the golden section: multiples of it are spread evenly, however many there are.
SPREAD = 0.618


def encoder(codec, profile, group):
    """The part of a pipeline from raw pictures to packets."""
    if codec == "h264":
        # The profile called high has what cameras use it for: pictures out of order, and larger transforms, which the
        # quickest preset leaves out.
        is_high = profile == "high"
        tune, reordered, preset = ("0", 2, "veryfast") if is_high else ("zerolatency", 0, "ultrafast")
        name = "constrained-baseline" if profile == "baseline" else profile
        return (
            f"x264enc speed-preset={preset} tune={tune} bframes={reordered} key-int-max={group} bitrate=1000 threads=1"
            f" ! video/x-h264,profile={name} ! rtph264pay name=pay0 pt=96 config-interval=-1"
        )
    if codec == "h265":
        tune, options = ("0", "bframes=2") if profile == "reordered" else ("zerolatency", "bframes=0")
        # A key frame where it is due, and nowhere else; wpp and frame threads would start a thread a core.
        options += f":keyint={group}:min-keyint={group}:scenecut=0:pools=none:frame-threads=1:log-level=none"
        return (
            f'x265enc speed-preset=ultrafast tune={tune} key-int-max={group} bitrate=1000 option-string="{options}"'
            " ! h265parse ! rtph265pay name=pay0 pt=96 config-interval=-1"
        )
    if codec == "jpeg":
        return "jpegenc quality=80 ! rtpjpegpay name=pay0 pt=26"
    sys.exit(f"{codec} is no codec: choose among h264, h265 and jpeg")


class Mount(GstRtspServer.RTSPMediaFactory):
    """A stream by its name."""

    def __init__(self, form):
        super().__init__()
        codec, profile, group, size, rate = form.split(",")
        width, height = size.split("x")
        self.pipeline = (
            f"( videotestsrc is-live=true pattern=ball motion=sweep ! video/x-raw,framerate={rate}/1"
            f" ! videoconvert ! videoscale ! capsfilter name=size caps={raw_pictures(width, height)}"
            f" ! valve name=valve ! {encoder(codec, profile, group)} )"
        )
        # Those of the clients that are connected.
        self.running = []
        self.set_protocols(GstRtsp.RTSPLowerTrans.TCP)
        self.connect("media-configure", lambda _factory, media: media.connect("unprepared", self.forget))

    def do_create_element(self, _url):
        pipeline = Gst.parse_launch(self.pipeline)
        self.running.append(pipeline)
        return pipeline

    def forget(self, media):
        element = media.get_element()
        self.running = [pipeline for pipeline in self.running if pipeline is not element]

    def stall(self, is_stalled):
        for pipeline in self.running:
            pipeline.get_by_name("valve").set_property("drop", is_stalled)

    def resize(self, size):
        width, height = size.split("x")
        for pipeline in self.running:
            caps = Gst.Caps.from_string(raw_pictures(width, height))
            pipeline.get_by_name("size").set_property("caps", caps)


class LoopMount(Mount):
    """The coded pictures of a file, again and again."""

    def __init__(self, form):
        GstRtspServer.RTSPMediaFactory.__init__(self)
        _loop, path, rate = form.split(",")
        self.pipeline = (
            "( appsrc name=source is-live=true do-timestamp=true format=time max-bytes=8000000 leaky-type=upstream"
            " ! valve name=valve ! rtph264pay name=pay0 pt=96 config-interval=-1 )"
        )
        self.pictures, self.caps = coded_pictures(path)
        self.rate = int(rate)
        # The running pipelines, and where in the file each of them began.
        self.running = []
        self.places = {}
        self.clients = itertools.count()
        self.set_protocols(GstRtsp.RTSPLowerTrans.TCP)
        self.connect("media-configure", lambda _factory, media: media.connect("unprepared", self.forget))
        threading.Thread(target=self.feed, daemon=True).start()

    def do_create_element(self, _url):
        pipeline = Gst.parse_launch(self.pipeline)
        pipeline.get_by_name("source").set_property("caps", self.caps)
        self.places[pipeline] = int(next(self.clients) * SPREAD * len(self.pictures))
        self.running.append(pipeline)
        return pipeline

    def forget(self, media):
        super().forget(media)
        self.places.pop(media.get_element(), None)

    def feed(self):
        """Sends each client what is due to it; clients one after the other, as cameras know nothing of each other."""
        started = time.monotonic()
        for number in itertools.count():
            clients = list(self.running)
            for index, pipeline in enumerate(clients or [None]):
                due = started + (number + index / max(len(clients), 1)) / self.rate
                time.sleep(max(due - time.monotonic(), 0))
                if pipeline is not None:
                    place = (number + self.places.get(pipeline, 0)) % len(self.pictures)
                    buffer = Gst.Buffer.new_wrapped(self.pictures[place])
                    pipeline.get_by_name("source").emit("push-buffer", buffer)


def coded_pictures(path):
    """The pictures of a stream of H.264 one by one, and what they are."""
    if not os.path.isfile(path):
        sys.exit(f"{path} is no file")
    reader = Gst.parse_launch(
        "filesrc name=file ! h264parse ! video/x-h264,stream-format=avc,alignment=au ! appsink name=sink sync=false"
    )
    reader.get_by_name("file").set_property("location", path)
    reader.set_state(Gst.State.PLAYING)
    pictures, caps = [], None
    while (sample := reader.get_by_name("sink").emit("pull-sample")) is not None:
        buffer, caps = sample.get_buffer(), sample.get_caps()
        pictures.append(buffer.extract_dup(0, buffer.get_size()))
    reader.set_state(Gst.State.NULL)
    if not pictures:
        sys.exit(f"{path} holds no pictures of H.264")
    return pictures, caps


def raw_pictures(width, height):
    # 4:2:0, as cameras have it: the source would otherwise be coded as 4:4:4.
    return f"video/x-raw,format=I420,width={width},height={height}"


def require_login(server, mounts, user, password):
    """Digest, for every mount."""
    login = GstRtspServer.RTSPAuth()
    login.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", ROLE)
    login.add_digest(user, password, token)
    server.set_auth(login)
    rights = f"{ROLE}, media.factory.access=true, media.factory.construct=true"
    for mount in mounts.values():
        mount.add_role_from_structure(Gst.Structure.new_from_string(rights))


def control(server, mounts):
    """Faults on request; returns the port."""

    def clients(decide):
        return server.client_filter(lambda _server, _client: decide) or []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            answer = "done"
            match self.path.strip("/").split("/"):
                case ["stall", name]:
                    mounts[name].stall(True)
                case ["flow", name]:
                    mounts[name].stall(False)
                case ["size", name, size]:
                    mounts[name].resize(size)
                case ["drop"]:
                    clients(GstRtspServer.RTSPFilterResult.REMOVE)
                case ["clients"]:
                    answer = str(len(clients(GstRtspServer.RTSPFilterResult.REF)))
                case _:
                    return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer.encode())

    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    return listener.server_port


def end_with_input():
    while os.read(0, 1024):
        pass
    os._exit(0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", default="0", help="RTSP port; a free one if omitted")
    parser.add_argument("--user", help="require this user")
    parser.add_argument("--password", default="", help="and this password")
    parser.add_argument("--mount", action="append", required=True, metavar="NAME=FORM", help="a stream")
    arguments = parser.parse_args()

    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(arguments.port)
    mounts = {}
    for mount in arguments.mount:
        name, form = mount.split("=", 1)
        mounts[name] = LoopMount(form) if form.startswith("loop,") else Mount(form)
        server.get_mount_points().add_factory(f"/{name}", mounts[name])
    if arguments.user:
        require_login(server, mounts, arguments.user, arguments.password)
    if not server.attach(None):
        sys.exit(f"port {arguments.port} cannot be listened on")
    threading.Thread(target=end_with_input, daemon=True).start()
    print("READY", server.get_bound_port(), control(server, mounts), flush=True)
    GLib.MainLoop().run()


main()
