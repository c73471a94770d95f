"""One thread: the suite shares its cores."""

import torch

torch.set_num_threads(1)
