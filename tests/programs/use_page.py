"""Use the page as a program: address, image. Prints what it shows."""

import json
import sys

from gradio_client import Client, handle_file
from PIL import Image

client = Client(sys.argv[1], verbose=False)
drawing, summary, people, table, file = client.predict(
    handle_file(sys.argv[2]),
    "vitpose-small-open",
    "coco",
    False,
    "udp",
    0.3,
    "automatic",
    "poses",
    api_name="/estimate",
)
with open(file) as content:
    poses = json.load(content)["poses"]
print(
    json.dumps(
        {
            "size": Image.open(drawing).size,
            "summary": summary,
            "people": len(people),
            "header": table["headers"],
            "poses": len(poses),
        }
    )
)
