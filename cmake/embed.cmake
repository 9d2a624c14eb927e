# cmake -DIN=FILE -DOUT=FILE.c -DNAME=page -P embed.cmake: the bytes of IN as a C array NAME_html and NAME_size.
file(READ ${IN} hex HEX)
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
string(REGEX REPLACE "(................................................................................)" "\\1\n" bytes "${bytes}")
file(WRITE ${OUT} "#include \"serve/page.h\"\n\nconst unsigned char ${NAME}_html[] = {\n${bytes}\n};\nconst size_t ${NAME}_size = sizeof ${NAME}_html;\n")
