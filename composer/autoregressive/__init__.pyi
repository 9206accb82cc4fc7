from .dvae import DVAELoss as DVAELoss
from .dvae import dvae_loss as dvae_loss
from .dvae import kl_weight_at as kl_weight_at
from .dvae import learning_rate_at as learning_rate_at
from .dvae import temperature_at as temperature_at
from .image_tokens import ImageTokens as ImageTokens
