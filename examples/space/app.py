"""The page as a Hugging Face Space, or anywhere that runs gradio: python app.py."""

from vitpose_jax import PoseEstimator
from vitpose_jax.web.models import Models
from vitpose_jax.web.page import create_page
from vitpose_jax.web.video import create_video_tracker

# Visitors choose among these; more, such as the Hub id "usyd-community/vitpose-plus-small", need more memory.
MODELS = ["vitpose-small-open"]

models = Models({name: PoseEstimator.from_pretrained(name) for name in MODELS})
demo = create_page(models, track_video=create_video_tracker(models))

if __name__ == "__main__":
    demo.launch()
