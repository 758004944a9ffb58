"""What pages of training share: the environment of their templates, with the style and the plots of templates/."""

import jinja2

from train.pretrain.chart import short_count


def page_environment(*packages: str) -> jinja2.Environment:
    """Templates of these packages, and behind them those of this one. All values are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader(package, "templates") for package in (*packages, "train.pretrain")]
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = lambda value: f"{value:,}"
    environment.filters["short"] = short_count
    environment.filters["loss"] = lambda value: "-" if value is None else f"{value:.3f}"
    environment.filters["percent"] = lambda value: "-" if value is None else f"{value:.1%}"
    return environment
