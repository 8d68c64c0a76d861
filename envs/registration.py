"""Registration with Gymnasium, done when :mod:`envs` is imported.

    import envs
    gymnasium.make("couponlab/CouponMarket-v0")

or, in one, by the id that names the module to import: ``gymnasium.make("envs:couponlab/CouponMarket-v0")``.
"""

import gymnasium

gymnasium.register(
    id="couponlab/CouponMarket-v0",
    entry_point="envs.coupon_market:CouponMarketEnv",
    vector_entry_point="envs.coupon_market:CouponMarketVectorEnv",
)
gymnasium.register(
    id="couponlab/TabularMarket-v0",
    entry_point="envs.tabular_env:TabularMarketEnv",
    vector_entry_point="envs.tabular_env:TabularMarketVectorEnv",
)
