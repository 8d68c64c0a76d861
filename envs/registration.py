"""Registration with Gymnasium, by importing this module.

Gymnasium 1.x loads no plugins by itself, so the id names the module to import first:

    gymnasium.make("envs.registration:couponlab/CouponMarket-v0")
"""

import gymnasium

gymnasium.register(
    id="couponlab/CouponMarket-v0",
    entry_point="envs.coupon_market:CouponMarketEnv",
    vector_entry_point="envs.coupon_market:CouponMarketVectorEnv",
)
