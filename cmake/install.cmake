# `cmake --install`: headers, library, flashomniConfig.cmake, the tool, presets and the model.
include(CMakePackageConfigHelpers)
set(config_dir ${CMAKE_INSTALL_LIBDIR}/cmake/flashomni)

install(TARGETS flashomni EXPORT flashomniTargets)
install(DIRECTORY include/flashomni DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT flashomniTargets NAMESPACE flashomni:: DESTINATION ${config_dir})
configure_package_config_file(cmake/flashomniConfig.cmake.in
  ${PROJECT_BINARY_DIR}/flashomniConfig.cmake INSTALL_DESTINATION ${config_dir}
  PATH_VARS CMAKE_INSTALL_DATADIR)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/flashomniConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/flashomniConfig.cmake
  ${PROJECT_BINARY_DIR}/flashomniConfigVersion.cmake DESTINATION ${config_dir})

set(data_dir ${CMAKE_INSTALL_DATADIR}/flashomni)
install(DIRECTORY presets DESTINATION ${data_dir})
install(FILES LICENSE NOTICE DESTINATION ${data_dir})
# 40 MB: leave it out with `cmake --install DIR --component ...` of the others.
install(DIRECTORY models DESTINATION ${data_dir} COMPONENT model OPTIONAL)
