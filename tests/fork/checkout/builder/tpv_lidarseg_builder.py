from mmseg.models import build_segmentor


def build(model_config):
    import tpvformer10

    assert tpvformer10.EditedFormer
    model = build_segmentor(model_config)
    model.init_weights()
    return model
