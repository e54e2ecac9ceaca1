"""Colour icon sets: one picture for each name, without logos, user-interface doubles and size variants."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from .emoji import Names
from .iconify import Collection
from .packages import PACKAGES
from .raster import Drawing
from .words import caption, listed, plain, unique

# set -> the endings of its variants, best first; a name with another variant ending is left out
SETS: dict[str, tuple[str, ...]] = {
    "flat-color-icons": (),
    "flat-ui": (),
    "glyphs-poly": (),
    "icon-park": (),
    "fluent-color": ("-48", "-32", "-28", "-24", "-20", "-16"),
    "meteocons": ("-fill", ""),
    "streamline-color": ("-flat", ""),
    "streamline-flex-color": ("-flat", ""),
    "streamline-plump-color": ("-flat", ""),
    "streamline-kameleon-color": ("", "-duo"),
    "streamline-stickies-color": ("", "-duo"),
    "streamline-ultimate-color": (),
}
# Only in the larger corpus: mostly user-interface and business vocabulary.
MORE_SETS: dict[str, tuple[str, ...]] = {
    "marketeq": (),
    "streamline-sharp-color": ("-flat", ""),
    "streamline-freehand-color": (),
    "streamline-cyber-color": (),
}
UI_CATEGORIES = listed("""
    Abstract Arrows Base Charts Components Connect Datas Edit Graphics Office Operate Others
    InterfaceEssential InternetNetworksServers ProgramingAppsWebsites Programming ComputerCoding
    ArrowsDiagrams Content FilesFolders BusinessProducts DataTransfer DesignImages
    ArtificialIntelligence
""")
FLAG_SETS: dict[str, str] = {"circle-flags": "", "flagpack": "", "flag": "-4x3", "cif": ""}  # set -> ending
NATIONS = {
    "gb-eng": "1f3f4-e0067-e0062-e0065-e006e-e0067-e007f",
    "gb-sct": "1f3f4-e0067-e0062-e0073-e0063-e0074-e007f",
    "gb-wls": "1f3f4-e0067-e0062-e0077-e006c-e0073-e007f",
}

# Trademarks: an icon whose name has one of these words is left out.
BRANDS = listed("""
    adobe adidas airbnb alibaba alipay amazon android angular apple appstore atlassian aws baidu behance
    bing bitbucket bitcoin blender blogger bluetooth bootstrap chrome cisco codepen creative css dell
    deviantart dingtalk discord disney docker dogecoin dribbble dropbox ebay edge ethereum evernote
    facebook figma firefox flickr foursquare github gitlab gmail gojek gopro google hbo html ibm ie
    instagram intel internet-explorer ios java javascript jira kickstarter kubernetes lego line linkedin
    linux litecoin lyft mac macos mastercard medium messenger microsoft monero mozilla mysql netflix
    nintendo node npm nvidia office onedrive opera oracle outlook paypal photoshop php pinterest
    playstation pokeball pokemon postgresql python qq qzone r2d2 react reddit ripple ruby safari samsung
    sega shopify siri sketch skype slack snapchat soundcloud spotify stackoverflow steam stripe swift
    telegram tencent tesla tiktok tinder trello tumblr twitch twitter typescript uber ubuntu unsplash
    vimeo visa vk vscode vue wechat weibo weixin whatsapp wikipedia windows word wordpress xbox yahoo
    yelp youtube zoom copilot bard chatgpt openai nike vader darth stormtrooper batman superman
    spiderman ironman minion mickey mario pacman starwars crypto cryptocurrency namecoin peercoin hummer
    hummers toyota garmin alcatel volvo bmw tux inkscape gnome kde mandriva debian fedora r2 bb8 c3po
    dragonball
""")
_SERIAL = re.compile(r"(?<=\w\w\w) (?:one|two|three|four|five|six|seven|eight|nine|ten|alt|bold|flat|duo)$")
BRAND_CATEGORIES = ("Brand", "Logos", "LogosSocialMedia")


def drawings(cache: Path, names: Names, larger: bool = False) -> list[Drawing]:
    """The icons of the colour sets, then the flags; `larger` adds user-interface icons."""
    found: list[Drawing] = []
    left_out = frozenset(BRAND_CATEGORIES) if larger else UI_CATEGORIES.union(BRAND_CATEGORIES)
    for prefix, endings in (SETS | MORE_SETS if larger else SETS).items():
        found.extend(_of_set(Collection(prefix, cache), endings, left_out))
    for prefix, ending in FLAG_SETS.items():
        found.extend(_flags(Collection(prefix, cache), ending, names))
    return found


def _of_set(collection: Collection, endings: tuple[str, ...], left_out: frozenset[str]) -> Iterator[Drawing]:
    """One picture for each name of a set, without the categories that are left out."""
    for base, name in sorted(_best_variants(list(collection.names()), endings).items()):
        category = collection.categories.get(name, "")
        if is_brand(base) or category in left_out:
            continue
        text = _SERIAL.sub("", caption(base))
        if len(re.sub(r"[^a-z]", "", text)) < 3:
            continue
        texts = unique([plain(base), plain(category)], leave_out=text)
        yield Drawing(
            key=f"{collection.prefix}/{name}",
            content=collection.svg(name),
            text=text,
            texts=tuple(texts),
            family=collection.prefix,
            kind="icon",
            source=PACKAGES["iconify"].source,
            licence=collection.licence,
            group=plain(category) or None,
        )


def _best_variants(names: list[str], endings: tuple[str, ...]) -> dict[str, str]:
    """Name without variant ending -> the name of its best variant."""
    if not endings:
        return {name: name for name in names}
    rank: dict[str, tuple[int, str]] = {}
    longest_first = sorted(endings, key=len, reverse=True)
    for name in names:
        ending = next((e for e in longest_first if name.endswith(e)), None)
        if ending is None:
            continue
        base = name[: len(name) - len(ending)]
        rank[base] = min(rank.get(base, (99, "")), (endings.index(ending), name))
    return {base: name for base, (_, name) in rank.items()}


def is_brand(name: str) -> bool:
    """Whether a name has the name of a trademark among its words."""
    return not BRANDS.isdisjoint(re.split(r"[-_ ]", name))


def _flags(collection: Collection, ending: str, names: Names) -> Iterator[Drawing]:
    """The flags of countries and of the British nations; other codes are left out."""
    for name in collection.names():
        if not name.endswith(ending):
            continue
        concept = names.concepts.get(flag_concept(name.removesuffix(ending)))
        if concept is not None and concept.group == "flags":
            texts = unique([concept.label.removeprefix("flag of "), *concept.tags], leave_out=concept.label, limit=6)
            yield Drawing(
                key=f"{collection.prefix}/{name}",
                content=collection.svg(name),
                text=concept.label,
                texts=tuple(texts),
                family=collection.prefix,
                kind="icon",
                concept=concept.id,
                group="flags",
                source=PACKAGES["iconify"].source,
                licence=collection.licence,
            )


def flag_concept(code: str) -> str:
    """The emoji id of an ISO 3166 code: `"at"` gives `"1f1e6-1f1f9"`; else the empty string."""
    if code in NATIONS:
        return NATIONS[code]
    if re.fullmatch("[a-z]{2}", code):
        return "-".join(f"{0x1F1E6 + ord(letter) - ord('a'):x}" for letter in code)
    return ""
