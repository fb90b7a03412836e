"""The page as a Hugging Face Space, or anywhere that runs gradio: python app.py."""

from vitpose_jax import PoseEstimator
from vitpose_jax.web.batcher import Batcher
from vitpose_jax.web.page import create_page
from vitpose_jax.web.video import create_video_tracker

MODEL = "vitpose-small-open"  # or a Hub id such as "usyd-community/vitpose-plus-small"

estimator = PoseEstimator.from_pretrained(MODEL)
demo = create_page(Batcher(estimator), model_name=MODEL, track_video=create_video_tracker(estimator))

if __name__ == "__main__":
    demo.launch()
