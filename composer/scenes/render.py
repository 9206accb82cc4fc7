"""Batched sphere tracing (Hart 1996) of a few things on a ground plane, with culling.

Each (thing, ray) pair whose bounding sphere is hit is traced in the thing's own frame; the nearest hit wins. Things
have 2 x 2 samples per pixel; ground and sky, whose textures are filtered, one.
"""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import avg_pool2d

from composer.scenes import scenery
from composer.scenes.solids import SOLIDS, Field, Points, Solid

TORUS = list(SOLIDS).index("torus")
NIGHT = scenery.SKIES.index("night")


@dataclass(frozen=True, kw_only=True)
class World:
    """Scenes as tensors; lengths in units of a sphere's radius at size 1, y up, the camera at x = 0 looking along z."""

    height: Float[Tensor, " b"]  # of the camera above the ground
    distance: Float[Tensor, " b"]  # from the camera to z = 0 along the ground
    pitch: Float[Tensor, " b"]  # radians that the camera looks down
    zoom: Float[Tensor, " b"]  # tangent of half the field of view
    light: Float[Tensor, "b 3"]  # unit vector towards the sun
    ground: Int[Tensor, " b"]  # index into scenery.GROUNDS
    sky: Int[Tensor, " b"]  # index into scenery.SKIES
    shift: Float[Tensor, "b 3"]  # where the textures lie: u, v, and a rotation in radians
    shape: Int[Tensor, "b n"]  # index into SOLIDS; -1 = no thing
    size: Float[Tensor, "b n"]
    place: Float[Tensor, "b n 2"]  # x and z on the ground
    yaw: Float[Tensor, "b n"]  # radians
    albedo: Float[Tensor, "b n 3"]  # linear RGB
    shiny: Float[Tensor, "b n"]  # 1 = shiny, 0 = matte

    def rows(self, part: slice) -> "World":
        """Selects scenes."""
        return World(**{field.name: getattr(self, field.name)[part] for field in fields(self)})


@dataclass(frozen=True)
class Rendering:
    """Rendered scenes.

    Args:
        image: In [-1, 1], sRGB.
        inverse: Inverse depth along the camera's axis; 0 in the sky.
        ids: At 2 x 2 samples per pixel: 1 + the slot of the visible thing, 0 = none.
    """

    image: Float[Tensor, "b 3 h w"]
    inverse: Float[Tensor, "b 1 h w"]
    ids: Int[Tensor, "b h2 w2"]


RAYS = 1 << 18
"""Rays traced at once on the CPU; they fit a core's cache."""


@torch.no_grad()
def render(world: World, size: int) -> Rendering:
    """Renders every scene at `size` x `size`; rows are independent."""
    rows = max(1, (RAYS if world.height.device.type == "cpu" else RAYS << 8) // (2 * size) ** 2)
    parts = [_render(world.rows(slice(at, at + rows)), size) for at in range(0, len(world.height), rows)]
    return Rendering(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Rendering)))


def _render(world: World, size: int) -> Rendering:
    view = _View(world)
    colour, inverse, ids = _things(view, 2 * size)
    cover = avg_pool2d((ids > 0).float()[:, None], 2)
    back, back_inverse = _surroundings(view, size, cover[:, 0] < 1)
    light = avg_pool2d(colour, 2) + back * (1 - cover)
    depth = avg_pool2d(inverse, 2) + back_inverse * (1 - cover)
    return Rendering(light.clamp(0, 1).pow(1 / 2.2) * 2 - 1, depth, ids)


class _View:
    """A world and derived quantities: camera axes, thing centres, bounds, light."""

    def __init__(self, world: World):
        self.world = world
        self.device = world.height.device
        self.sin, self.cos = world.pitch.sin(), world.pitch.cos()
        solids = SOLIDS.values()
        shape = world.shape.clamp(min=0)
        lift, bound = (
            torch.tensor(x, device=self.device)[shape] for x in zip(*((s.lift, s.bound) for s in solids), strict=True)
        )
        self.bound = bound * world.size * (world.shape >= 0)
        self.centre = torch.stack([world.place[..., 0], lift * world.size, world.place[..., 1]])  # 3 b n
        self.eye = torch.stack([torch.zeros_like(world.height), world.height, -world.distance])  # 3 b
        light = scenery.SKY_LIGHT.to(self.device)[world.sky]
        self.horizon, self.zenith, self.cloud, self.sun, self.ambient = light.permute(1, 2, 0).unbind()  # each 3 b

    def rays(self, b: Tensor, x: Tensor, y: Tensor) -> Points:
        """Directions of the rays through screen points (in units of half the image), 1 along the camera's axis."""
        x, y, sin, cos = x * self.world.zoom[b], y * self.world.zoom[b], self.sin[b], self.cos[b]
        return torch.stack([x, y * cos - sin, y * sin + cos])


def _grid(n: int, device: torch.device) -> Float[Tensor, " n"]:
    """Centres of n samples across the screen, in units of half of it."""
    return (torch.arange(n, device=device) * 2 + 1 - n) / n


def _candidates(view: _View, n: int) -> Bool[Tensor, "b k n n"]:
    """Which rays hit which thing's bounding sphere: (c.d)^2 > (|c|^2 - r^2) |d|^2, seen from the camera."""
    x, y = _grid(n, view.device), -_grid(n, view.device)
    cx, cy, cz = (view.centre - view.eye[:, :, None]).unbind()
    sin, cos, zoom = view.sin[:, None], view.cos[:, None], view.world.zoom[:, None]
    up, ahead = cy * cos + cz * sin, cz * cos - cy * sin
    along = ((cx * zoom)[..., None] * x)[:, :, None] + ((up * zoom)[..., None] * y + ahead[..., None])[..., None]
    length = 1.0 + view.world.zoom.square()[:, None, None] * (x.square() + y.square()[:, None])
    return (
        along.square()
        > (cx.square() + cy.square() + cz.square() - view.bound.square())[..., None, None] * length[:, None]
    )


def _trace(field: Field, origin: Points, ray: Points, t: Float[Tensor, " n"], end: Float[Tensor, " n"]) -> Tensor:
    """Sphere tracing: distance along unit rays to the surface, infinite if missed."""
    out = torch.full_like(t, torch.inf)
    live = torch.arange(len(t), device=t.device)
    for _ in range(8):
        for _ in range(4):
            h = field(origin + ray * t)
            t = torch.where(h > 2e-3, t + h, t)
        hit = h <= 2e-3
        out[live[hit]] = t[hit]
        left = (~hit & (t < end)).nonzero()[:, 0]
        live, origin, ray, t, end = live[left], origin[:, left], ray[:, left], t[left], end[left]
        if len(left) == 0:
            break
    return out


def _to_frame(view: _View, b: Tensor, k: Tensor, points: Points) -> Points:
    """Transforms world points to a thing's own frame, in units of its size."""
    offset = (points - view.centre[:, b, k]) / view.world.size[b, k]
    return _turn(offset, -view.world.yaw[b, k])


def _turn(v: Points, yaw: Float[Tensor, " n"]) -> Points:
    sin, cos = yaw.sin(), yaw.cos()
    return torch.stack([v[0] * cos + v[2] * sin, v[1], v[2] * cos - v[0] * sin])


def _normal(field: Field, p: Points) -> Points:
    """The gradient of a signed distance by finite differences at the corners of a tetrahedron."""
    corners = torch.tensor([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]], dtype=p.dtype, device=p.device)
    gradient = torch.stack([c[:, None] * field(p + 2e-3 * c[:, None]) for c in corners]).sum(0)
    return gradient / gradient.square().sum(0).sqrt().clamp(min=1e-9)


def _things(view: _View, n: int) -> tuple[Float[Tensor, "b 3 n n"], Float[Tensor, "b 1 n n"], Int[Tensor, "b n n"]]:
    """Traces and shades all things at n x n samples; black, 0 and 0 where none is visible."""
    rows = len(view.sin)
    pairs = _candidates(view, n).nonzero()
    b, k, iy, ix = pairs.T.contiguous()
    grid = _grid(n, view.device)
    ray = view.rays(b, grid[ix], -grid[iy])
    depth, normal = _hits(view, b, k, ray)
    pixel = (b * n + iy) * n + ix
    nearest = torch.full((rows * n * n,), torch.inf, device=view.device).scatter_reduce(0, pixel, depth, "amin")
    seen = ((depth == nearest[pixel]) & depth.isfinite()).nonzero()[:, 0]
    b, k, pixel, ray, depth, normal = b[seen], k[seen], pixel[seen], ray[:, seen], depth[seen], normal[:, seen]
    shade = _shade(view, b, k, view.eye[:, b] + ray * depth, ray, normal)
    colour = torch.zeros(3, rows * n * n, device=view.device)
    colour[:, pixel] = shade
    ids = torch.zeros(rows * n * n, dtype=torch.long, device=view.device)
    ids[pixel] = k + 1
    inverse = torch.where(nearest.isfinite(), 1 / nearest, 0)
    return colour.view(3, rows, n, n).transpose(0, 1), inverse.view(rows, 1, n, n), ids.view(rows, n, n)


def _hits(view: _View, b: Tensor, k: Tensor, ray: Points) -> tuple[Float[Tensor, " n"], Points]:
    """Depth along the camera's axis (infinite = missed) and world normal of (thing, ray) pairs, one solid at a time."""
    depth, normal = torch.full_like(ray[0], torch.inf), torch.zeros_like(ray)
    shape, yaw = view.world.shape[b, k], view.world.yaw[b, k]
    length = ray.square().sum(0).sqrt()
    origin, ray = _to_frame(view, b, k, view.eye[:, b]), _turn(ray / length, -yaw)
    bound = (view.bound / view.world.size)[b, k]
    for index, solid in enumerate(SOLIDS.values()):
        own = (shape == index).nonzero()[:, 0]
        o, d = origin[:, own], ray[:, own]
        middle = -(o * d).sum(0)
        half = (bound[own].square() - o.square().sum(0) + middle.square()).clamp(min=0).sqrt()
        t = _trace(solid.distance, o, d, middle - half, middle + half)
        hit = t.isfinite().nonzero()[:, 0]
        normal[:, own[hit]] = _normal(solid.distance, o[:, hit] + d[:, hit] * t[hit])
        depth[own] = t * view.world.size[b[own], k[own]] / length[own]
    return depth, _turn(normal, yaw)


def _shadow(view: _View, b: Tensor, points: Points, own: Tensor) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Soft shadows: how much sun reaches each point, and how much of the sky it sees.

    A ray towards the sun that passes at distance h after t is lit by about h / t (Quilez 2010).

    Args:
        view: The scenes.
        b: Each point's scene.
        points: World points.
        own: The slot of the thing that a point lies on, -1 = the ground; only a torus shades itself.
    """
    light, slots = view.world.light.T[:, b], view.world.shape.shape[1]
    sun, sky = torch.ones(slots, len(b), device=view.device), torch.ones(slots, len(b), device=view.device)
    pairs_k, pairs_i = _occluders(view, b, points, light, own)
    shape = view.world.shape[b[pairs_i], pairs_k]
    for index, solid in enumerate(SOLIDS.values()):
        mine = (shape == index).nonzero()[:, 0]
        k, i = pairs_k[mine], pairs_i[mine]
        p, d = _to_frame(view, b[i], k, points[:, i]), _turn(light[:, i], -view.world.yaw[b[i], k])
        itself = own[i] == k
        sun[k, i] = _penumbra(solid, p, d, itself)
        sky[k, i] = torch.where(itself, 1.0, (solid.distance(p) * view.world.size[b[i], k] / 0.5).clamp(0, 1))
    return sun.prod(0), sky.prod(0)


def _occluders(view: _View, b: Tensor, points: Points, light: Points, own: Tensor) -> tuple[Tensor, Tensor]:
    """Which things' bounding spheres are near which points or their rays to the sun: slots and indices of points."""
    near = []
    for k in range(view.world.shape.shape[1]):
        to, bound = view.centre[:, b, k] - points, view.bound[b, k]
        along, square = (to * light).sum(0), to.square().sum(0)
        beside = square - along.clamp(min=0).square() < (bound * 1.2 + 0.1).square()
        close = square < (bound + 0.5).square()
        casts = (bound > 0) & ((own != k) | (view.world.shape[b, k] == TORUS))
        near.append((beside & (along > -bound) | close) & casts)
    k, i = torch.stack(near).nonzero().T
    return k, i


def _penumbra(solid: Solid, p: Points, ray: Points, own: Bool[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The share of sunlight past one solid, in its frame; points on it (`own`) start a little away from it."""
    middle = -(p * ray).sum(0)
    t = torch.maximum(middle - solid.bound * 1.3, torch.where(own, 0.15, 0.02))
    end = middle + solid.bound
    lit = torch.ones_like(t)
    for _ in range(16):
        h = solid.distance(p + ray * t)
        lit = torch.where(t < end, torch.minimum(lit, 9.0 * h / t), lit)
        t = t + h.clamp(0.06, 0.5)
    lit = lit.clamp(0, 1)
    return lit * lit * (3 - 2 * lit)


def _shade(view: _View, b: Tensor, k: Tensor, points: Points, ray: Points, normal: Points) -> Points:
    """Light from things to the camera, linear RGB: sun, sky and ground light; shiny things also reflect."""
    albedo, shiny = view.world.albedo[b, k].T, view.world.shiny[b, k]
    light, toward = view.world.light.T[:, b], -ray / ray.square().sum(0).sqrt()
    sun, _ = _shadow(view, b, points, k)
    facing = (normal * light).sum(0).clamp(min=0) * sun
    up = 0.5 + 0.5 * normal[1]
    low = (points[1] / 0.8).clamp(0, 1) * 0.35 + 0.65
    earth = _earth(view)[:, b]
    diffuse = view.sun[:, b] * facing + view.ambient[:, b] * up * low + earth * (1 - up) * 0.5
    middle = light + toward
    middle = middle / middle.square().sum(0).sqrt()
    gloss = (normal * middle).sum(0).clamp(min=0).pow(70) * 1.6 * sun
    cosine = (normal * toward).sum(0).clamp(0, 1)
    mirror = shiny * (0.06 + 0.5 * (1 - cosine).pow(4))
    bounce = normal[1] * 2 * cosine - toward[1]
    reflected = torch.where(bounce > 0, _gradient(view, b, bounce), earth)
    return albedo * diffuse * (1 - 0.5 * mirror) + mirror * reflected + view.sun[:, b] * (gloss * shiny)


def _earth(view: _View) -> Float[Tensor, "3 b"]:
    """Average light reflected by the ground."""
    texels, starts = scenery.atlas(view.device)
    part = len(texels) // (len(scenery.GROUNDS) + len(scenery.SKIES))
    mean = texels[view.world.ground * part + starts[-1]].T
    return mean * (view.ambient + view.sun * view.world.light[:, 1])


def _gradient(view: _View, b: Tensor, rise: Float[Tensor, " n"]) -> Points:
    """The sky without clouds, by the sine of elevation."""
    share = 1 - (1 - rise.clamp(0, 1)).pow(4)
    return torch.lerp(view.horizon[:, b], view.zenith[:, b], share)


def _surroundings(
    view: _View, n: int, wanted: Bool[Tensor, "b n n"]
) -> tuple[Float[Tensor, "b 3 n n"], Float[Tensor, "b 1 n n"]]:
    """Ground and sky, and their inverse depth, once per pixel, where `wanted`."""
    rows = len(view.sin)
    b, iy, ix = wanted.nonzero().T.contiguous()
    grid = _grid(n, view.device)
    ray = view.rays(b, grid[ix], -grid[iy])
    inverse = (-ray[1] / view.eye[1, b]).clamp(min=0)
    colour = torch.empty_like(ray)
    down, up = (ray[1] < 0).nonzero()[:, 0], (ray[1] >= 0).nonzero()[:, 0]
    pixel = 2 * view.world.zoom / n
    colour[:, down] = _ground(view, b[down], ray[:, down], 1 / inverse[down], pixel)
    colour[:, up] = _sky(view, b[up], ray[:, up], pixel)
    out = torch.zeros(4, rows * n * n, device=view.device)
    out[:, (b * n + iy) * n + ix] = torch.cat([colour, inverse[None]])
    out = out.view(4, rows, n, n)
    return out[:3].transpose(0, 1), out[3:].transpose(0, 1)


def _ground(view: _View, b: Tensor, ray: Points, depth: Float[Tensor, " n"], pixel: Float[Tensor, " b"]) -> Points:
    """Light from the ground: texture, shadows, ambient occlusion, haze towards the horizon."""
    points = view.eye[:, b] + ray * depth
    u, _, v = _turn(points, view.world.shift[b, 2]) / scenery.GROUND_TILE
    across = pixel[b] * depth
    footprint = across * (depth / view.eye[1, b]).sqrt() / scenery.GROUND_TILE
    texture = view.world.ground[b]
    albedo = scenery.sample(texture, u + view.world.shift[b, 0], v + view.world.shift[b, 1], footprint)
    sun, sky = torch.ones_like(depth), torch.ones_like(depth)
    near = (depth < 24).nonzero()[:, 0]
    sun[near], sky[near] = _shadow(view, b[near], points[:, near], torch.full_like(near, -1))
    light = view.sun[:, b] * view.world.light[b, 1] * sun + view.ambient[:, b] * (0.25 + 0.75 * sky)
    haze = 1 - torch.exp(-(depth / 34).square())
    return torch.lerp(albedo * light, view.horizon[:, b], haze)


def _sky(view: _View, b: Tensor, ray: Points, pixel: Float[Tensor, " b"]) -> Points:
    """The sky with its clouds, which lie on a plane of their own, or stars."""
    rise = ray[1] / ray.square().sum(0).sqrt()
    night = view.world.sky[b] == NIGHT
    flat = torch.where(night, 0.3, 0.15 / (ray[1] + 0.12))
    u, v = ray[0] * flat, torch.where(night, ray[1], ray[2]) * flat
    u, v = u + view.world.shift[b, 0], v + view.world.shift[b, 1]
    density = scenery.sample(view.world.sky[b] + len(scenery.GROUNDS), u, v, pixel[b] * flat * torch.where(night, 1, 2))
    fade = (rise / 0.06).clamp(0, 1)
    return torch.lerp(_gradient(view, b, rise), view.cloud[:, b], density * fade)
