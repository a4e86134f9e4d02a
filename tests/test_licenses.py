"""Which licence a text is, which licences an expression allows, and which licence files hold for source code."""

from pathlib import Path

import pytest
from datatrove.data import Document

from training.corpus.readers.code import is_allowed, name_license
from training.corpus.readers.tables import Bad
from training.corpus.readers.unit import read_unit
from training.corpus.recipe import list_units, read_sources


def test_licences_are_told_apart() -> None:
    assert name_license("Apache License\n Version 2.0, January 2004") == "apache-2.0"
    assert name_license("PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2") == "psf-2.0"
    assert name_license("All rights reserved.") == "other"
    # As the texts begin, and what they say of other licences further on.
    affero = "13. Use with the GNU Affero General Public License, Version 3"
    gnu = "                    GNU {} PUBLIC LICENSE\n                       Version {}, {}\n\n {}"
    texts = {
        "gpl-3.0": gnu.format("GENERAL", "3", "29 June 2007", affero),
        "gpl-2.0": gnu.format(
            "GENERAL", "2", "June 1991", "use the GNU Lesser General\nPublic License instead. Version 2.1"
        ),
        "gpl-1.0": gnu.format("GENERAL", "1", "February 1989", ""),
        "lgpl-2.0": gnu.format("LIBRARY GENERAL", "2", "June 1991", "GNU General Public License, version 2"),
        "lgpl-2.1": gnu.format("LESSER GENERAL", "2.1", "February 1999", "GNU GENERAL PUBLIC LICENSE Version 2"),
        "lgpl-3.0": gnu.format(
            "LESSER GENERAL", "3", "29 June 2007", "of version 3 of the GNU General Public License"
        ),
        "agpl-3.0": gnu.format("AFFERO GENERAL", "3", "19 November 2007", "GNU General Public License, version 3"),
        "mpl-2.0": "Mozilla Public License Version 2.0\n====\n1.12 the GNU General Public License, Version 2.0, "
        + affero,
        "mpl-1.1": "MOZILLA PUBLIC LICENSE\n    Version 1.1\n---------",
        "mit": "Copyright (c) 2020 A\n\nPermission is hereby granted, free of charge, to any person obtaining a copy\n"
        "... parts of it are under the Apache License, Version 2.0",
        "bsd-2-clause": "Redistribution and use in source and binary forms, with\nor without. 2. Redistributions in "
        "binary form must reproduce the above copyright",
        "bsd-3-clause": "Redistribution and use in source and binary forms. Redistributions in binary form. "
        "Neither the name of the University",
        "bsd-4-clause": "Redistribution and use in source and binary forms. "
        "All advertising materials mentioning features",
        "isc": "Permission to use, copy, modify, and/or distribute this software for any\npurpose with or "
        "without fee is hereby granted, provided that the above copyright notice",
        "0bsd": "Permission to use, copy, modify, and/or distribute this software for any purpose.",
        "cc-by-sa-4.0": "Attribution-ShareAlike 4.0 International\n\n=====",
        "other": "Attribution-NonCommercial 4.0 International",
    }
    assert {name: name_license(text) for name, text in texts.items()} == {name: name for name in texts}


COMMON = Path("/usr/share/common-licenses")  # of Debian


@pytest.mark.skipif(not COMMON.is_dir(), reason="not on Debian")
def test_the_common_licences_of_debian_are_told_apart() -> None:
    found = {path.name: name_license(path.read_text("utf-8", "replace")) for path in COMMON.iterdir()}
    special = {"Artistic": "artistic-1.0", "BSD": "bsd-3-clause"}
    for name, license in found.items():
        if name[-1].isdigit():
            expected = name.lower() if "." in name else f"{name.lower()}.0"
            assert license == special.get(name, expected)
        else:  # GPL is the newest of them, and so on
            assert license == special.get(name, license) and license.startswith(name.lower()[:3])


@pytest.mark.parametrize(
    ("expression", "allowed", "holds"),
    [
        ("MIT", ["mit"], True),
        ("mit or apache-2.0", ["mit"], True),
        ("MIT OR Apache-2.0", ["apache-2.0", "mit"], True),
        ("mit and apache-2.0", ["mit"], False),
        ("mit and apache-2.0", ["mit", "apache-2.0"], True),
        ("(mit or gpl-2.0) and bsd-3-clause", ["mit", "bsd-3-clause"], True),
        ("mit or gpl-2.0 and bsd-3-clause", ["gpl-2.0"], False),
        ("gpl-2.0-or-later", ["gpl-2.0"], True),
        ("gpl-2.0+", ["gpl-2.0-only"], True),
        ("gpl-3.0-only", ["gpl-2.0"], False),
        ("apache-2.0 with llvm-exception", ["apache-2.0"], True),
        ("gpl-2.0 with classpath-exception-2.0", ["mit"], False),
        ("(mit or", ["mit"], False),
        ("", ["mit"], False),
    ],
)
def test_an_expression_is_allowed_if_it_leaves_a_way(expression: str, allowed: list[str], holds: bool) -> None:
    assert is_allowed(expression, tuple(allowed)) == holds


def test_licence_files_side_by_side_and_names_in_capital_letters(tmp_path: Path) -> None:
    mit = "Permission is hereby granted, free of charge, to any person obtaining a copy"
    for name, text in {
        "choice/LICENSE-MIT": mit,
        "choice/LICENSE-APACHE": "Apache License\nVersion 2.0",
        "choice/a.py": "print(1)",
        "both/LICENSE": mit,
        "both/COPYING": "GNU GENERAL PUBLIC LICENSE\nVersion 3",
        "both/license.py": "Apache License Version 2.0",
        "both/b.py": "print(2)",
        "lesser/COPYING": "GNU GENERAL PUBLIC LICENSE\nVersion 3",
        "lesser/COPYING.LESSER": "GNU LESSER GENERAL PUBLIC LICENSE\nVersion 3",
        "lesser/c.py": "# SPDX-License-Identifier: (MIT OR Apache-2.0) AND BSD-3-Clause */\nprint(3)",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    settings = {"files": str(tmp_path), "type": "code", "languages": ["Python"], "licenses": ["MIT", "BSD-3-Clause"]}
    found = [
        record
        for unit in list_units(read_sources([{"name": "it", **settings}]), 1)
        for record in read_unit(unit, 100_000)
    ]
    documents = [record for record in found if isinstance(record, Document)]
    bad = {(record.reason, record.id) for record in found if isinstance(record, Bad)}
    assert {document.id: document.metadata["license"] for document in documents} == {
        "choice/a.py": "apache-2.0 or mit",
        "lesser/c.py": "(mit or apache-2.0) and bsd-3-clause",
    }
    assert {("license", "both/b.py"), ("license", "both/license.py")} <= bad
