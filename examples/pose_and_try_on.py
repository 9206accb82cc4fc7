"""Pose and try-on: objects take another picture's shapes; a person takes a garment's looks (Composer, section 3.4).

python examples/pose_and_try_on.py                               # Scenes, a photograph
python examples/pose_and_try_on.py person.jpg other.jpg
"""

from composer.studio import ExampleRow, Studio, run
from composer.tasks.papers import pose_transfer, try_on


def other_pose(studio: Studio) -> ExampleRow:
    """Gives a picture's things the shapes of another one's."""
    picture, pose = studio.pictures("scene04", "scene05")
    take = ("instances", "sketch")
    return studio.row(
        "Pose transfer",
        "Semantics and palette of the first Scene stay; its things take the shapes of the second one's.",
        f"repose {picture} {pose} --take {' '.join(take)}",
        [*studio.taken(picture), *studio.taken(pose, *take)],
        pose_transfer(studio.model, picture.source, pose.source, take=take, **studio.inverting),
    )


def worn(studio: Studio) -> ExampleRow:
    """Puts a garment's looks where clothes are."""
    box = "0.3,0.45,0.85,1"
    wearer, garment = studio.pictures("astronaut", "scene19")
    square, frame = studio.within(wearer, box)
    return studio.row(
        "Virtual try-on",
        "Semantics and palette of the garment, inside a box around the suit, whose sketch and depth stay.",
        f"try-on {wearer} {garment} --region {box} --keep sketch depth",
        [*studio.taken(wearer), *studio.preview(square.source.has, "sketch", "depth"), *studio.taken(garment)],
        try_on(studio.model, square.source, garment.source, ("sketch", "depth")),
        count=2,
        frame=frame,
    )


EXAMPLES = (other_pose, worn)

if __name__ == "__main__":
    run(__doc__, *EXAMPLES)
