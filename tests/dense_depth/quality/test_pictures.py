"""What pictures show, by the colour of their pixels."""

import cv2
import numpy as np
from conftest import label_of

from dense_depth.label import Source
from dense_depth.quality.errors import Verdict
from dense_depth.quality.pictures import COLOURS, PANEL_WIDTH, panels, worst_and_ordinary


def test_pictures_show_where_a_label_is_wrong():
    truth = np.full((90, 160), 20, np.float32)
    depth_m = np.zeros((45, 80), np.float32)
    depth_m[10, 20], depth_m[30, 60], depth_m[40, 10] = 20, 40, 5
    picture = panels(np.zeros((90, 160, 3), np.uint8), label_of(depth_m), truth, "frame")
    height = picture.shape[0] // 2
    assert picture.shape == (2 * round(PANEL_WIDTH * 90 / 160), 2 * PANEL_WIDTH, 3)
    errors, px = picture[height:, PANEL_WIDTH:], PANEL_WIDTH / 80
    for (v, u), kind in {(10, 20): Verdict.RIGHT, (30, 60): Verdict.BEHIND, (40, 10): Verdict.IN_FRONT}.items():
        assert tuple(errors[round((v + 0.5) * px), round((u + 0.5) * px)]) == COLOURS[kind]
    bottom = panels(np.zeros((90, 160, 3), np.uint8), label_of(depth_m), truth, "frame", crop_height=20)
    errors = bottom[bottom.shape[0] // 2 :, PANEL_WIDTH:]
    assert tuple(errors[round(5.5 * px), round(60.5 * px)]) == COLOURS[Verdict.BEHIND]


def test_pictures_of_completed_labels_show_what_was_measured_and_the_confidence():
    depth_m, source = np.full((45, 80), 20, np.float32), np.full((45, 80), Source.COMPLETED, np.uint8)
    confidence = np.full((45, 80), 128, np.uint8)
    source[10, 20], confidence[10, 20] = Source.STATIC, 255
    truth = np.full((90, 160), 20, np.float32)
    picture = panels(np.full((90, 160, 3), 255, np.uint8), label_of(depth_m, source, confidence), truth, "frame")
    height, px = picture.shape[0] // 3, PANEL_WIDTH / 80
    measured, shown = picture[height : 2 * height, :PANEL_WIDTH], picture[height : 2 * height, PANEL_WIDTH:]
    at, elsewhere = (round(10.5 * px), round(20.5 * px)), (round(30.5 * px), round(60.5 * px))
    assert tuple(measured[at]) == tuple(picture[at[0], at[1] + PANEL_WIDTH]) != tuple(measured[elsewhere])
    assert tuple(measured[elsewhere]) == (89,) * 3  # the image, dimmed
    viridis = cv2.applyColorMap(np.array([[255, 128]], np.uint8), cv2.COLORMAP_VIRIDIS)[0]
    # Of neighbours the least confident is on top, so the measured pixel is seen at its own place alone.
    assert tuple(shown[at]) == tuple(viridis[0]) and tuple(shown[elsewhere]) == tuple(viridis[1])


def test_the_worst_labels_and_an_ordinary_one_of_each_camera_are_drawn():
    false_labels = {
        ("one", "BACK"): {"a": 3, "b": 9, "c": 0},
        ("two", "BACK"): {"d": 5},
        ("one", "FRONT"): {"a": 7, "b": 0, "c": 0},
    }
    assert worst_and_ordinary(false_labels, 2) == {
        "worst-01.png": ("one", "BACK", "b"),
        "worst-02.png": ("one", "FRONT", "a"),
        "ordinary-BACK.png": ("one", "BACK", "a"),  # of 9, 5, 3 and 0
        "ordinary-FRONT.png": ("one", "FRONT", "b"),
    }
    assert len(worst_and_ordinary(false_labels, 99)) == 4 + 2  # those without false labels are not among the worst
