from dfkd_jax.config import default_config, unknown_variant
def get_config(variant='default'):
    c=default_config(); c.name='mnist'
    return c
