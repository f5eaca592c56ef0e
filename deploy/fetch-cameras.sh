#!/usr/bin/env bash
# What the tests of cameras need beside the rest: GStreamer's RTSP server for Python, and ffmpeg, as packages of Debian or
# Ubuntu (about 120 MB). Installs them where that can be done without asking: as root, with apt-get. Elsewhere it says
# what is missing, and those tests say that they were skipped. Does nothing where all is there.
# TRIBUTARY_CAMERA_TESTS=required makes a failure of what is missing, here and in the tests.
set -euo pipefail

packages=(ffmpeg gir1.2-gst-rtsp-server-1.0 python3-gi gstreamer1.0-tools gstreamer1.0-plugins-base
    gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly gstreamer1.0-plugins-bad)

# The system's own Python: others do not see its packages.
is_there() {
    command -v ffmpeg >/dev/null && [ -x /usr/bin/python3 ] && /usr/bin/python3 - <<'PYTHON' 2>/dev/null
import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import Gst, GstRtspServer
Gst.init(None)
needed = "videotestsrc videoscale x264enc x265enc h265parse jpegenc rtph264pay rtph265pay rtpjpegpay"
raise SystemExit(any(Gst.ElementFactory.find(name) is None for name in needed.split()))
PYTHON
}

is_there && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    printf 'fetch-cameras: installing %s\n' "${packages[*]}" >&2
    if apt-get update -qq >&2 &&
        DEBIAN_FRONTEND=noninteractive apt-get install --yes -qq --no-install-recommends "${packages[@]}" >&2 && is_there; then
        exit 0
    fi
fi
printf 'fetch-cameras: the tests of cameras will be skipped: install the packages %s (Debian, Ubuntu), or run %s as root\n' \
    "${packages[*]}" "$0" >&2
[ "${TRIBUTARY_CAMERA_TESTS:-}" != required ]
