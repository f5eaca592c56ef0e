"""Clients that are not ours: publish one picture, print the final answer as JSON.

client.py nats URL SITE FILE          with nats-py
client.py mqtt HOST:PORT SITE FILE QOS SIZE    with paho-mqtt; the picture is followed by zeros up to SIZE bytes
client.py frigate HOST:PORT SITE FILE          as Frigate and Home Assistant: a snapshot on a topic of its own, retained; the
                                               answer in JSON, once as it comes and once by a client that comes later
client.py kept HOST:PORT SITE TOPIC            a client that comes late, and prints what is kept at TOPIC
"""

import asyncio
import json
import queue
import sys

import msgpack

PATIENCE_S = 30


def show(subject, payload):
    answer = msgpack.unpackb(payload)
    print(json.dumps({"subject": subject, **answer}))


async def with_nats(url, site, image):
    import nats

    client = await nats.connect(url)
    answers = await client.subscribe(f"answer.final.{site}.python.*")
    await client.jetstream().publish(f"image.{site}.python", image, headers={"Tributary-Priority": "7"})
    message = await answers.next_msg(timeout=PATIENCE_S)
    show(message.subject, message.data)
    await client.close()


def with_mqtt(address, site, image, qos):
    import paho.mqtt.client as mqtt

    answers = queue.Queue()
    subscribed = queue.Queue()
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="python", protocol=mqtt.MQTTv311)
    client.on_message = lambda _client, _user, message: answers.put(message)
    client.on_subscribe = lambda *_: subscribed.put(True)
    host, port = address.split(":")
    client.connect(host, int(port))
    client.loop_start()
    client.subscribe(f"answer/final/{site}/python/+", qos=0)
    subscribed.get(timeout=PATIENCE_S)
    client.publish(f"image/{site}/python", image, qos=qos).wait_for_publish(PATIENCE_S)
    message = answers.get(timeout=PATIENCE_S)
    show(message.topic, message.payload)
    client.loop_stop()


def with_frigate(address, site, image):
    import paho.mqtt.client as mqtt

    host, port = address.split(":")

    def listen(name, heard):
        subscribed = queue.Queue()
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv311)
        client.on_message = lambda _client, _user, message: heard.put(message)
        client.on_subscribe = lambda *_: subscribed.put(True)
        client.connect(host, int(port))
        client.loop_start()
        client.subscribe("answer-json/#", qos=1)
        subscribed.get(timeout=PATIENCE_S)
        return client

    first, later = queue.Queue(), queue.Queue()
    client = listen("first", first)
    client.publish("frigate/python/person/snapshot", image, qos=1, retain=True).wait_for_publish(PATIENCE_S)
    told = first.get(timeout=PATIENCE_S)
    while told.retain:
        told = first.get(timeout=PATIENCE_S)
    other = listen("later", later)
    kept = later.get(timeout=PATIENCE_S)
    answer = json.loads(told.payload)
    print(json.dumps({"subject": told.topic, "kept": kept.retain and kept.payload == told.payload, **answer}))
    client.loop_stop()
    other.loop_stop()


def read_kept(address, topic):
    import paho.mqtt.client as mqtt

    heard = queue.Queue()
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="late", protocol=mqtt.MQTTv311)
    client.on_message = lambda _client, _user, message: heard.put(message)
    host, port = address.split(":")
    client.connect(host, int(port))
    client.loop_start()
    client.subscribe(topic, qos=1)
    message = heard.get(timeout=PATIENCE_S)
    print(json.dumps({"subject": message.topic, "retained": bool(message.retain), **json.loads(message.payload)}))
    client.loop_stop()


if __name__ == "__main__":
    kind, address, site, file, *more = sys.argv[1:]
    if kind == "kept":
        read_kept(address, file)
        sys.exit()
    with open(file, "rb") as opened:
        image = opened.read()
    if kind == "nats":
        asyncio.run(with_nats(address, site, image))
    elif kind == "frigate":
        with_frigate(address, site, image)
    else:
        qos, size = map(int, more)
        with_mqtt(address, site, image.ljust(size, b"\0"), qos)
