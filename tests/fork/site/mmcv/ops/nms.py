from ..utils import ext_loader

ext_module = ext_loader.load_ext("_ext", ["nms", "softnms"])


def nms(boxes, scores, threshold):
    return ext_module.nms(boxes, scores, iou_threshold=threshold, offset=0)
