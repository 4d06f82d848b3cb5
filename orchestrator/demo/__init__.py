"""What `ptq demo` needs: a generator of data, and a small base that was pretrained on it (`base/`, 4 MB)."""

from pathlib import Path

BASE_FOLDER = Path(__file__).parent / "base"
BASE_NAME = "demo-base"
DATASET_NAME = "restaurants"
TRAIN_ROWS, VALIDATION_ROWS = 20_000, 200
SEED = 1
