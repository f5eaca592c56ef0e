"""Publish one image and print its final answer.

    python publish_and_read.py IMAGE [SITE] [CAMERA]

NATS_URL names the site's server; it is nats://127.0.0.1:4222 by default.
"""

import asyncio
import os
import sys
import uuid
from pathlib import Path

import msgpack
import nats

ANSWER_TIMEOUT_S = 30


async def main(image, site="site-1", camera="cam-1"):
    client = await nats.connect(os.environ.get("NATS_URL", "nats://127.0.0.1:4222"))

    # A message id that is a UUID becomes the id of the task, so the subject of its answer is known beforehand.
    # Subscribe first: the answer may arrive before the acknowledgement.
    task = str(uuid.uuid4())
    answers = await client.subscribe(f"answer.final.{site}.{camera}.{task}")

    # The acknowledgement says that the image is stored and will be answered. Without one, publish again with the
    # same id: the image is answered only once.
    headers = {"Nats-Msg-Id": task, "Tributary-File": Path(image).name}
    stored = await client.jetstream().publish(f"image.{site}.{camera}", Path(image).read_bytes(), headers=headers)
    print(f"stored as message {stored.seq} of stream {stored.stream}")

    # A doubtful image is answered when the cloud's verdict arrives, or at its deadline, so a real program should read
    # answers in a separate task.
    message = await answers.next_msg(timeout=ANSWER_TIMEOUT_S)
    # A map of named fields, including "kind" and "version"; ignore fields that you do not know.
    answer = msgpack.unpackb(message.data)
    if answer["route"] == "dead":
        print(f"not recognized: {answer['fault']['reason']}")
    else:
        print(f"{answer['label']} ({answer['confidence']:.1%}), decided by route {answer['route']}")
    await client.close()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    asyncio.run(main(*sys.argv[1:]))
