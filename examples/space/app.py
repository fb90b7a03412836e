"""The page as a Hugging Face Space, or anywhere that runs gradio: python app.py."""

from vitpose_jax import PoseEstimator
from vitpose_jax.web.batcher import Batcher
from vitpose_jax.web.page import create_page

MODEL = "vitpose-small-open"  # or a Hub id such as "usyd-community/vitpose-plus-small"

demo = create_page(Batcher(PoseEstimator.from_pretrained(MODEL)), model_name=MODEL)

if __name__ == "__main__":
    demo.launch()
