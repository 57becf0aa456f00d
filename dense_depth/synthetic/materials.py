"""What surfaces are made of: how they look to a camera, and what a LiDAR gets back from them."""

import enum

import numpy as np

from dense_depth.datasets.truth import Surface


class Material(enum.IntEnum):
    """The material of a triangle; ``shading`` paints each in its own pattern."""

    STREET = 0  # the ground: asphalt, markings, pavement or grass, by its place
    FACADE = 1  # plaster with rows of windows
    BRICK = 2
    CONCRETE = 3
    ROOF = 4
    GLASS = 5
    METAL = 6
    WOOD = 7
    FOLIAGE = 8
    BARK = 9
    PAINT = 10  # car bodies
    RUBBER = 11
    PLASTIC = 12
    CLOTH = 13
    SKIN = 14
    SIGN = 15  # retro-reflecting, with a border
    STRIPES = 16  # retro-reflecting red and white
    LAMP = 17  # shines by itself


SURFACES = np.full(len(Material), Surface.THIN, np.uint8)  # kind of surface in the background
SURFACES[Material.STREET] = Surface.GROUND
SURFACES[[Material.FACADE, Material.BRICK, Material.CONCRETE, Material.ROOF, Material.GLASS]] = Surface.BUILDING
SURFACES[[Material.FOLIAGE, Material.BARK]] = Surface.VEGETATION

# Diffuse reflectivity at 905 nm relative to white paint, and the share of pulses that pass through unseen.
# Orders of magnitude: vegetation is bright in the near infrared, rubber and asphalt are dark, glass is seldom seen.
REFLECTIVITY = np.full(len(Material), 0.35, np.float32)
LOSS = np.zeros(len(Material), np.float32)
for _material, _reflectivity in {
    Material.STREET: 0.15,
    Material.BRICK: 0.3,
    Material.CONCRETE: 0.3,
    Material.ROOF: 0.2,
    Material.GLASS: 0.1,
    Material.METAL: 0.4,
    Material.FOLIAGE: 0.5,
    Material.BARK: 0.25,
    Material.RUBBER: 0.05,
    Material.CLOTH: 0.4,
    Material.SKIN: 0.5,
    Material.SIGN: 1.0,
    Material.STRIPES: 0.9,
}.items():
    REFLECTIVITY[_material] = _reflectivity
LOSS[Material.GLASS] = 0.7
