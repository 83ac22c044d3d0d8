# The page of `flashomni inspect` as a C++ string: cmake -DSOURCE_DIR= -DOUTPUT= -P inspect_page.cmake
file(READ ${SOURCE_DIR}/page.html page)
foreach(part "STYLE page.css" "FIGURES figures.css" "SCRIPT run.js figures.js words.js page.js")
  separate_arguments(files UNIX_COMMAND ${part})
  list(POP_FRONT files mark)
  set(content "")
  foreach(name ${files})
    file(READ ${SOURCE_DIR}/${name} text)
    string(APPEND content "${text}\n")
  endforeach()
  string(REPLACE "/*${mark}*/" "${content}" page "${page}")
endforeach()
# Pieces, because compilers limit the length of one literal.
string(REPLACE "\n" ")page\" \"\\n\"\nR\"page(" page "${page}")
file(WRITE ${OUTPUT} "// Made from apps/cli/inspect.\n#pragma once\n\n#include <string_view>\n\n"
  "namespace flashomni::cli {\ninline constexpr std::string_view kInspectPage =\n"
  "R\"page(${page})page\";\n}  // namespace flashomni::cli\n")
